"""Inputs of modules, looked at while a model runs, by forward pre-hooks that are there for that long alone.

A pass that only serves to look ends as soon as it has shown all: the observer raises `StopForward` from the
hook of the last module that it waits for, and `observe` ends there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

__all__ = ["Observer", "StopForward", "is_same", "observe"]


class StopForward(Exception):  # noqa: N818 — it is no error
    """All that is looked at was seen: the rest of the pass is not needed."""


class Observer(ABC):
    """What looks at the inputs of modules.

    Examples:
        >>> from submerge.gating import Observer
        >>> class Widths(Observer):
        ...     def on_input(self, name, module, x):
        ...         print(name, x.shape[-1])
    """

    @abstractmethod
    def on_input(self, name: str, module: nn.Module, x: Any) -> None:
        """Take note of the first input of a module; raise `StopForward` to end the pass."""


@contextmanager
def observe(modules: Mapping[str, nn.Module], observer: Observer) -> Iterator[None]:
    """Let an observer see the first input of each module, by name, whenever it is called inside.

    Examples:
        >>> import torch
        >>> from submerge.gating import Observer, StopForward, observe
        >>> class First(Observer):
        ...     def on_input(self, name, module, x):
        ...         print(name, tuple(x.shape))
        ...         raise StopForward
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
        >>> with observe({"0": model[0], "1": model[1]}, First()):
        ...     model(torch.ones(5, 4))
        0 (5, 4)
    """
    handles = [
        module.register_forward_pre_hook(partial(_call, observer, name), with_kwargs=True)
        for name, module in modules.items()
    ]
    try:
        yield
    except StopForward:
        return
    finally:
        for handle in handles:
            handle.remove()


def _call(
    observer: Observer, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    if inputs := (*args, *kwargs.values()):
        observer.on_input(name, module, inputs[0])


def is_same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Return whether two tensors are the same values in the same place.

    Examples:
        >>> import torch
        >>> from submerge.gating import is_same
        >>> x = torch.ones(2, 3)
        >>> is_same(x, x.view(2, 3)), is_same(x, x.clone())
        (True, False)
    """
    return a is b or (a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride())
