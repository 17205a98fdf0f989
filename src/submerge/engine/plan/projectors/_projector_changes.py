"""What models of one multimodal base changed of its encoder and of its projector."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from submerge.deferred import np, npt
from submerge.engine.plan.inputs import Inputs
from submerge.errors import Problem, few
from submerge.names import MultimodalParts
from submerge.store import DTYPES, Checkpoint, FileTable, first_bytes, read_values, rounded

__all__ = ["ProjectorChanges", "projector_changes"]

SAMPLE = 1 << 14
"""The values of a tensor that are compared with the base's: training changes nearly all of them."""


@dataclass(frozen=True)
class ProjectorChanges:
    """The tensors that models have changed, by the models' positions; models that changed none are left out.

    Attributes:
        projector: of the projector.
        encoder: of the encoders.
        unfit: of the projector, those that the model lacks, has in another shape, or has besides.
    """

    projector: Mapping[int, list[str]] = field(default_factory=dict)
    encoder: Mapping[int, list[str]] = field(default_factory=dict)
    unfit: Mapping[int, list[str]] = field(default_factory=dict)

    def problems(self, inputs: Inputs) -> Iterator[Problem]:
        """Yield why the models' projectors cannot be mixed behind one encoder."""
        for position, names in self.encoder.items():
            what = f"it changes the encoder, which all tasks share: {few(names)}"
            hint = "train without it, or write 'projectors: merged'"
            yield Problem(what, inputs.models[position].label, hint)
        for position, names in self.unfit.items():
            what = f"its projector is of another form than the base's: {few(names)}"
            hint = "mix projectors of one form"
            yield Problem(what, inputs.models[position].label, hint)


def projector_changes(
    base: Checkpoint, models: Mapping[int, Checkpoint], parts: MultimodalParts
) -> ProjectorChanges:
    """Return what of the parts the models have changed, by what adapters say and by the first values."""
    projector = list(filter(parts.in_projector, base.tensors))
    encoder = list(filter(parts.in_encoder, base.tensors))
    with FileTable() as table:
        own = {i: _changed(model, base, projector, table) for i, model in models.items()}
        shared = {i: _changed(model, base, encoder, table) for i, model in models.items()}
    unfit = {i: _unfit(model, base, parts) for i, model in models.items()}
    return ProjectorChanges(_present(own), _present(shared), _present(unfit))


def _present(names: Mapping[int, list[str]]) -> dict[int, list[str]]:
    return {position: of_model for position, of_model in names.items() if of_model}


def _unfit(model: Checkpoint, base: Checkpoint, parts: MultimodalParts) -> list[str]:
    """Return the projector's tensors that a model lacks, has in another shape, or has besides."""
    shapes = [
        {name: entry.shape for name, entry in one.tensors.items() if parts.in_projector(name)}
        for one in (model, base)
    ]
    own, theirs = shapes
    return sorted(name for name in own | theirs if own.get(name) != theirs.get(name))


def _changed(model: Checkpoint, base: Checkpoint, names: Sequence[str], table: FileTable) -> list[str]:
    """Return the tensors that a model's adapter changes, or that begin with other values than the base's."""
    return [name for name in names if name in model.edited or not _begins_alike(model, base, name, table)]


def _begins_alike(model: Checkpoint, base: Checkpoint, name: str, table: FileTable) -> bool:
    """Return whether a tensor's first values are the base's, as far as that can be told before a download."""
    own, entry = model.tensors.get(name), base.tensors[name]
    if own is None or own is entry or own.shape != entry.shape or model.pending or base.pending:
        return True
    if own.dtype == entry.dtype:
        return first_bytes(model, name, table) == first_bytes(base, name, table)
    types = [DTYPES[own.dtype], DTYPES[entry.dtype]]
    if any(dtype.kind != "float" for dtype in types):
        return False
    coarse = min(types, key=lambda dtype: dtype.bits).code
    first, second = (_first_values(one, name, coarse, table) for one in (model, base))
    return np.array_equal(first, second)


def _first_values(model: Checkpoint, name: str, dtype: str, table: FileTable) -> npt.NDArray[Any]:
    """Return the first values of a tensor of floats, rounded to a type."""
    entry = model.tensors[name]
    values = read_values(model.source(name, table), entry.dtype, 0, min(entry.numel, SAMPLE))
    return rounded(values, dtype)
