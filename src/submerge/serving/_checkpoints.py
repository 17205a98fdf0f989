"""Gradient checkpoints of transformers in a model with a gate: layers that run again do so as they ran."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from submerge.errors import Problem, RequestError
from submerge.gating import Assignment, Gate, GatedModel

__all__ = ["checkpoints_under"]

FUNCTION = "_gradient_checkpointing_func"
"""The attribute of transformers' modules for what runs a layer now, and again in the backward pass."""


@contextmanager
def checkpoints_under(model: Any, gated: GatedModel, assignment: Assignment | None) -> Iterator[None]:
    """Let layers whose activations are not kept be run again under the assignment of their first run.

    In the backward pass the gate is over. Raises `RequestError` where parameters are replaced for a pass:
    what is run again would have the model's own.
    """
    if assignment is None or not (model.training and torch.is_grad_enabled()):
        yield
        return
    modules = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    if modules and (gated.replaced or gated.resized):
        what = "with gradient checkpoints layers would be run again without the gate"
        hint = "switch them off, and give smaller batches"
        raise RequestError(Problem(what, type(model).__name__, hint))
    own = {module: getattr(module, FUNCTION) for module in modules if hasattr(module, FUNCTION)}
    try:
        for module, function in own.items():
            setattr(module, FUNCTION, partial(_checkpointed, gated.gate, function))
        yield
    finally:
        for module, function in own.items():
            setattr(module, FUNCTION, function)


def _checkpointed(gate: Gate, function: Callable[..., Any], layer: Callable[..., Any], *args: Any) -> Any:
    """Run a layer by a function of checkpoints, then and later under the assignment that is in force now."""
    assignment = gate.assignment

    def under(*args: Any) -> Any:
        if assignment is None:
            return layer(*args)
        with gate.turn, gate.over(assignment):
            return layer(*args)

    return function(under, *args)
