"""Specialists that were hardly made of the base: models of its shapes, and of other values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from submerge.deferred import np, npt
from submerge.engine.plan.inputs import Inputs
from submerge.names import layer_of
from submerge.store import Checkpoint, FileTable, read_values

__all__ = ["other_base_warnings"]

_SAMPLED, _VALUES = 4, 1 << 15
"""Matrices of which the first values are read, and how many of each at most."""
_CHANCE = 4.0
"""Standard deviations of the cosine of independent values, up to which two samples pass for independent."""


def other_base_warnings(inputs: Inputs) -> list[str]:
    """Return which specialists' language models have hardly anything to do with the base.

    Fine-tuning changes weights Θ = W_0 + Δ, which stay correlated with W_0. The weights of models that were
    trained apart are not: of n values the cosine is within a few 1/√n of zero. Then updates are as large as
    the weights, and their merge is of no use.
    """
    base, warnings = inputs.reference_model, []
    for own in inputs.specialists:
        model = inputs.models[own.model]
        if _are_independent(model, base):
            what = f"its language model has nothing in common with {base.label} but the shapes"
            hint = "is base_model the language model that it was made of?"
            warnings.append(f"{model.label}: {what}: {hint}")
    return warnings


def _are_independent(model: Checkpoint, base: Checkpoint) -> bool:
    """Return whether samples of both models' values are uncorrelated; False where none can be compared."""
    names = [] if model.pending or base.pending else list(_own_matrices(model, base))
    if not names:
        return False
    sample = names[:: max(1, len(names) // _SAMPLED)]
    with FileTable() as table:
        theirs, ours = (
            np.concatenate([_first_values(source, name, table) for name in sample])
            for source in (model, base)
        )
    norms = np.linalg.norm(theirs) * np.linalg.norm(ours)
    return bool(norms > 0 and abs(theirs @ ours) <= norms * _CHANCE / len(ours) ** 0.5)


def _own_matrices(model: Checkpoint, base: Checkpoint) -> Iterator[str]:
    """Yield the matrices of layers that a model has values of its own for, in the base's shape."""
    for name, entry in base.tensors.items():
        own = model.tensors.get(name)
        if own is None or own is entry or layer_of(name) is None or len(entry.shape) != 2:
            continue
        if own.shape == entry.shape and own.is_float and entry.is_float:
            yield name


def _first_values(model: Checkpoint, name: str, table: FileTable) -> npt.NDArray[Any]:
    entry = model.tensors[name]
    values = read_values(model.source(name, table), entry.dtype, 0, min(entry.numel, _VALUES))
    return values.astype(np.float64)
