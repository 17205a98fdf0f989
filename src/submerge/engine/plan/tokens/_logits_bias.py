"""The bias of logits that BART and its kin keep as one row [1, V]: a number for each token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from submerge.engine.plan.inputs import Inputs
from submerge.names import View
from submerge.store import Checkpoint, TensorEntry

__all__ = ["with_flat_bias", "with_row_bias"]

_NAME = "final_logits_bias"


def with_flat_bias(inputs: Inputs) -> Inputs:
    """Return the inputs with such a bias as a vector [V], which has a row for each token as other tables."""
    return _reshaped(inputs, 2, lambda view: view.squeeze(0))


def with_row_bias(inputs: Inputs) -> Inputs:
    """Return the inputs with such a bias as it was, [1, V]."""
    return _reshaped(inputs, 1, lambda view: view.unsqueeze(0))


def _reshaped(inputs: Inputs, dimensions: int, change: Callable[[View], View]) -> Inputs:
    """Return the inputs after a change of each such bias.

    What is one entry in several models stays one: by that a model under an adapter is known to be the base.
    """
    entries: dict[int, TensorEntry] = {}

    def of_model(model: Checkpoint) -> Checkpoint:
        entry = model.tensors.get(_NAME)
        if entry is None or len(entry.shape) != dimensions:
            return model
        view = change(model.views.get(_NAME) or View.of(_NAME, entry.shape))
        own = entries.setdefault(id(entry), replace(entry, shape=view.shape))
        return replace(
            model,
            tensors={**model.tensors, _NAME: own},
            views={**model.views, _NAME: view},
            stored=model.stored or model,
        )

    return inputs.of_models([of_model(model) for model in inputs.models])
