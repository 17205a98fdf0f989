"""Updates of single entries of a weight, at places that an adapter's file names: SHiRA and Super-Tuning."""

from __future__ import annotations

from dataclasses import dataclass

from submerge.deferred import torch
from submerge.errors import WorkError
from submerge.store.adapter._computed import Read, SizedUpdate
from submerge.store.format import TensorEntry

__all__ = ["Scattered", "chosen"]


@dataclass(frozen=True, kw_only=True)
class Scattered(SizedUpdate):
    """Values [k] that are added at places [2, k], rows and columns, or [k] of the weight as one vector.

    Values of one place are summed. With a `rank` (SHiRA, 2406.13175) there are as many as in LoRA's factors
    of that rank. `low_rank` is B and A, and what their product is multiplied by, which is added besides
    (Super-Tuning's Supra).
    """

    places: TensorEntry
    rank: int | None = None
    low_rank: tuple[TensorEntry, TensorEntry, float] | None = None

    @property
    def kind(self) -> str:
        return "Super-Tuning" if self.rank is None else "SHiRA"

    @property
    def of_conv1d(self) -> bool:
        return False

    @property
    def factor_entries(self) -> tuple[TensorEntry, ...]:
        return (self.entry,) if self.low_rank is None else ()

    @property
    def settings(self) -> dict[str, float]:
        return {} if self.low_rank is None else {self.low_rank[0].name: self.low_rank[2]}

    def takes(self, outputs: int, inputs: int) -> bool:
        if self.low_rank is not None:
            left, right, _ = self.low_rank
            return (left.shape[0], right.shape[1]) == (outputs, inputs)
        if self.rank is not None:
            return self.entry.numel == self.rank * (outputs + inputs)
        return self.entry.numel <= outputs * inputs

    def update(self, read: Read) -> torch.Tensor:
        outputs, inputs = self.size
        values, places = read(self.entry), read(self.places).long()
        sizes = (outputs, inputs) if places.ndim == 2 else (outputs * inputs,)
        for indices, size in zip(places.view(len(sizes), -1), sizes, strict=True):
            chosen(self.places, indices, size)
        update = torch.zeros(sizes, dtype=values.dtype)
        update.index_put_(tuple(places.view(len(sizes), -1)), values, accumulate=True)
        update = update.view(outputs, inputs)
        if self.low_rank is not None:
            left, right, scale = self.low_rank
            update += read(left) @ read(right) * scale
        return update


def chosen(entry: TensorEntry, indices: torch.Tensor, count: int) -> torch.Tensor:
    """Return indices as they are; raise `WorkError` where one is none of `count` values."""
    if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < count:
        what = f"tensor {entry.name} names a place beyond {count}: it is not of this base, or broken"
        raise WorkError(f"{entry.file}: {what} — download it again, or give the base that it was trained on")
    return indices
