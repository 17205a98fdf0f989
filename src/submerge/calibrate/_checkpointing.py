"""Activations of a model's layers that are computed again in the backward pass, in place of being held."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from submerge.deferred import required
from submerge.errors import Problem, RequestError
from submerge.gating import Gate

__all__ = ["checkpointed"]


@contextmanager
def checkpointed(model: nn.Module, gate: Gate) -> Iterator[None]:
    """Let each layer of a model of transformers hold its inputs alone for the backward pass, inside.

    transformers' own switch for that works in training mode alone, where dropout would act; so the layers
    that it is for are wrapped. They are computed again under the assignment that was in force in the forward
    pass. Caches of keys and values are off: a layer that is computed again would extend them again.

    Raises `RequestError` where the model has no such layers.
    """
    layer_class = required("transformers.modeling_layers", "checkpointing needs").GradientCheckpointingLayer
    layers = [module for module in model.modules() if isinstance(module, layer_class)]
    if not layers:
        what = f"{type(model).__name__} has no layers that transformers can checkpoint"
        raise RequestError(Problem(what, "checkpointing", "do without it, or give smaller batches"))
    with _without_caches(model):
        for layer in layers:
            layer.forward = partial(_again, layer.forward, gate)
        try:
            yield
        finally:
            for layer in layers:
                del layer.forward


def _again(forward: Callable[..., Any], gate: Gate, *args: Any, **kwargs: Any) -> Any:
    """Return what a layer's forward returns, which is computed again for the backward pass."""
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    assignment = gate.assignment

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), nullcontext() if assignment is None else gate.over(assignment)

    return checkpoint(
        partial(forward, **kwargs),
        *args,
        use_reentrant=False,  # inputs need no gradient where nothing that is learned comes before them
        preserve_rng_state=False,  # nothing is random in evaluation
        context_fn=contexts,
    )


@contextmanager
def _without_caches(model: nn.Module) -> Iterator[None]:
    own: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    configs = {id(config): config for config in own if hasattr(config, "use_cache")}.values()
    before = [(config, config.use_cache) for config in configs]
    for config in configs:
        config.use_cache = False
    try:
        yield
    finally:
        for config, value in before:
            config.use_cache = value
