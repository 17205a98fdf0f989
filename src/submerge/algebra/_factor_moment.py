"""Second moments of few directions, C = Sᵀ S + ρ I, down to none: the identity's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from submerge.algebra._moment import Moment, unlike
from submerge.algebra._spectrum import enough
from submerge.deferred import torch

__all__ = ["FactorMoment"]


@dataclass(frozen=True, eq=False)
class FactorMoment(Moment):
    """C = Sᵀ S + ρ I with the factor S [p, n] and the shift ρ; without rows it is ρ I, the identity's kind.

    Examples:
        >>> import torch
        >>> from submerge.algebra import FactorMoment
        >>> moment = FactorMoment(torch.tensor([[3.0, 4.0]]), 1.0, count=1)
        >>> moment.solve(torch.tensor([[3.0, 4.0], [-4.0, 3.0]])).round(decimals=4)
        tensor([[ 0.1154,  0.1538],
                [-4.0000,  3.0000]], dtype=torch.float64)
        >>> FactorMoment.identity(2, count=5).times(torch.ones(1, 2))
        tensor([[5., 5.]], dtype=torch.float64)
    """

    factor: torch.Tensor
    shift: float
    count: float

    @classmethod
    def identity(cls, width: int, count: float) -> FactorMoment:
        """Return N · I, for N inputs of which nothing is known but their number."""
        return cls(torch.zeros(0, width, dtype=torch.float64), float(count), count)

    @property
    def kind(self) -> str:
        return "lowrank" if len(self.factor) else "identity"

    @property
    def width(self) -> int:
        return self.factor.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return self.factor.dtype

    @property
    def trace(self) -> float:
        return float(self.factor.double().square().sum()) + self.width * self.shift

    @property
    def singular(self) -> bool:
        return self.shift == 0 and len(self._spectrum[0]) < self.width

    def added(self, other: Moment) -> FactorMoment:
        if not isinstance(other, FactorMoment) or other.width != self.width:
            raise unlike(self, other)
        factor = torch.cat([self.factor, other.factor])
        if len(factor) > self.width:  # n rows have the same SᵀS as more
            factor = torch.linalg.qr(factor, mode="r").R
        return FactorMoment(factor, self.shift + other.shift, self.count + other.count)

    def scaled(self, factor: float) -> FactorMoment:
        return replace(self, factor=self.factor * math.sqrt(factor), shift=self.shift * factor)

    def shifted(self, ridge: float) -> FactorMoment:
        return replace(self, shift=self.shift + ridge)

    def shrunk(self, offdiag: float) -> FactorMoment:
        if offdiag != 1 and self.kind == "lowrank":
            raise ValueError("factors have no diagonal to shrink to; shrink the full moment before")
        return self

    def truncated(self, energy: float) -> FactorMoment:
        s, vectors = self._spectrum
        p = enough(s.square(), energy)
        return replace(self, factor=(vectors[:, :p] * s[:p]).T.contiguous())

    def times(self, rows: torch.Tensor) -> torch.Tensor:
        rows, factor = rows.to(self.factor.device).double(), self.factor.double()
        return (rows @ factor.T) @ factor + self.shift * rows

    def solve(self, rows: torch.Tensor) -> torch.Tensor:
        rows = rows.to(self.factor.device).double()
        s, vectors = self._spectrum
        coordinates = rows @ vectors
        solved = (coordinates / (s.square() + self.shift)) @ vectors.T
        return solved + (rows - coordinates @ vectors.T) / self.shift if self.shift else solved

    def tensors(self) -> dict[str, torch.Tensor]:
        shift, count = (torch.tensor(value, dtype=torch.float64) for value in (self.shift, self.count))
        return {"factor": self.factor, "shift": shift, "count": count}

    @classmethod
    def _of_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> FactorMoment | None:
        if set(tensors) != {"factor", "shift", "count"} or tensors["factor"].ndim != 2:
            return None
        return cls(tensors["factor"], tensors["shift"].item(), tensors["count"].item())

    @cached_property
    def _spectrum(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The singular values [p] of S above rounding, descending, and its right singular vectors [n, p].

        Their squares are what C has, and what a full moment tells from rounding in float64. So directions
        that S has twice, and that differ by the rounding of float32 in which it was kept, count once.
        """
        _, s, vh = torch.linalg.svd(self.factor.double(), full_matrices=False)
        least = math.sqrt(max(self.factor.shape) * torch.finfo(torch.float64).eps)
        rank = int((s > s[:1] * least).sum())
        return s[:rank], vh[:rank].T
