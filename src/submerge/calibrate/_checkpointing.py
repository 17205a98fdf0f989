"""Gradient checkpoints at a model's layers, for passes that end before the last of them.

A layer holds its inputs alone, and is run again in the backward pass, with the assignment that was in force.
transformers' own checkpoints need a model in training mode, where dropout would act, and a pass that does not
end inside of a layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from submerge.calibrate._attached import AttachedAdapters
from submerge.errors import Problem, RequestError
from submerge.gating import StopForward, rerouted

__all__ = ["checkpointed"]


@contextmanager
def checkpointed(adapters: AttachedAdapters) -> Iterator[None]:
    """Let the layers of all stacks of a model with adapters hold no activations inside.

    The passes must not fill caches of keys and values, as those of `collect` do not: a layer that is computed
    again would extend them again.

    Raises `RequestError` where the model has no stack of layers.
    """

    def run(name: str, forward: Any, args: Any, kwargs: Any) -> Any:
        assignment, ends = adapters.gate.assignment, []

        def again(*args: Any, **kwargs: Any) -> Any:
            assert assignment is not None
            with adapters.under(assignment, name):
                try:
                    return forward(*args, **kwargs)
                except StopForward:  # is not to leave `checkpoint`, which would not know of it
                    ends.append(name)

        if assignment is None or not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        output = checkpoint(again, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
        if ends:
            raise StopForward
        return output

    layers = _layers(adapters.model)
    if not layers:
        what = f"{type(adapters.model).__name__} has no stack of layers"
        raise RequestError(Problem(what, "checkpointing", "do without it, or give smaller batches"))
    with rerouted(layers, run):
        yield


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers of the outermost stacks, by name."""
    layers: dict[str, nn.Module] = {}
    stacks: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not any(name.startswith(f"{outer}.") for outer in stacks):
            stacks.append(name)
            layers.update({f"{name}.{place}": layer for place, layer in module.named_children()})
    return layers
