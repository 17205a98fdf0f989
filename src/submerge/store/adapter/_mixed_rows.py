"""New values of rows that depend on other rows of the base, too: RoAd."""

from __future__ import annotations

from dataclasses import dataclass

from submerge.deferred import torch
from submerge.store.adapter._computed import Read
from submerge.store.adapter._transformed import RowMap, RowReader, Transformed
from submerge.store.format import TensorEntry

__all__ = ["TurnedPairs"]


@dataclass(frozen=True)
class TurnedPairs(Transformed):
    """RoAd: outputs are turned and scaled in pairs, which stand half a group apart (2409.00119).

    `entry` has the angles and `scales` the factors: `per_pair` many of them for each pair of outputs, 1, 2 or
    4. A bias is turned as the outputs are.
    """

    scales: TensorEntry
    group: int
    per_pair: int

    @property
    def kind(self) -> str:
        return "RoAd"

    @property
    def settings(self) -> dict[str, float]:
        return {self.entry.name: float(self.group)}

    def of_bias(self) -> Transformed | None:
        return self

    def takes(self, m: int, n: int) -> bool:
        return m % self.group == 0 and self.entry.numel * 2 == m * self.per_pair

    def row_map(self, read: Read) -> RowMap:
        angles, scales = read(self.entry).double(), read(self.scales).double()
        cosines, sines = self._of_outputs(scales * angles.cos()), self._of_outputs(scales * angles.sin())
        own, other = cosines[0], sines[-1]
        half = self.group // 2

        def new_rows(rows: torch.Tensor, top: int, others: RowReader) -> torch.Tensor:
            first = top - top % self.group
            last = -(-(top + len(rows)) // self.group) * self.group
            whole = rows if (first, last) == (top, top + len(rows)) else others(first, last).to(rows)
            one, two = whole.view(-1, 2, half, rows.shape[1]).unbind(1)
            turned = torch.stack([-two, one], 1).view_as(whole)
            new = whole * own[first:last, None].to(rows) + turned * other[first:last, None].to(rows)
            return new[top - first : top - first + len(rows)]

        return new_rows

    def _of_outputs(self, values: torch.Tensor) -> torch.Tensor:
        """Return values as [1, outputs], or [2, outputs] where each output of a pair has two."""
        if self.per_pair == 1:
            return values.view(-1, self.group // 2).repeat_interleave(2, dim=0).view(1, -1)
        if self.per_pair == 2:
            return values.view(1, -1)
        return values.view(-1, 2, self.group).transpose(0, 1).reshape(2, -1)
