"""Modules whose forward is run by a function of ours, for as long as a context lasts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

from torch import nn

__all__ = ["Run", "rerouted"]

Run: TypeAlias = Callable[[str, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""A function of a module's name, its forward, and the arguments, that returns the module's output."""


@contextmanager
def rerouted(modules: Mapping[str, nn.Module], run: Run) -> Iterator[None]:
    """Let a function run the forward of each module, by name, whenever it is called inside.

    Hooks of the modules are called as ever, before and after it. Gated modules may be among them.

    Examples:
        >>> import torch
        >>> from submerge.gating import rerouted
        >>> def twice(name, forward, args, kwargs):
        ...     return forward(forward(*args))
        >>> model = torch.nn.Sequential(torch.nn.Flatten(0), torch.nn.Threshold(5.0, 0.0))
        >>> with rerouted({"0": model[0]}, twice):
        ...     model(torch.full((2, 2), 7.0))
        tensor([7., 7., 7., 7.])
    """
    before: dict[str, Any] = {name: module.__dict__.get("forward") for name, module in modules.items()}
    for name, module in modules.items():
        module.forward = partial(_call, run, name, module.forward)
    try:
        yield
    finally:
        for name, module in modules.items():
            del module.forward
            if before[name] is not None:
                module.forward = before[name]


def _call(run: Run, name: str, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return run(name, forward, args, kwargs)
