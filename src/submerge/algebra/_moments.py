"""Second moments of the inputs of a linear map, and what least squares over tasks do with them.

A task shows a linear map y = W x, W [m, n], the inputs X [N, n], one row for each token. All that least
squares over the responses ‖(Ŵ − Δ) Xᵀ‖² see of them is the second moment

    C = Xᵀ X = Σ_rows xᵀ x     [n, n], symmetric and positive semidefinite, and the number N of rows.

It is held in one of five kinds, from the most exact to the cheapest:

    full       C                                     n² numbers
    block      diagonal blocks of C, of b inputs     n b
    diag       the diagonal of C                     n
    lowrank    C ≈ Sᵀ S + ρ I, S [p, n]              p n
    identity   C = ρ I; N is all that is known       1

The first three are blocks of different sizes, the last two factors of different numbers of rows. Moments of
one kind add: those of two workers, and those of all tasks, Φ = Σ C_t.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from submerge.algebra._spectrum import enough
from submerge.deferred import torch

__all__ = ["BlockMoment", "FactorMoment", "Moment", "add_products"]

POWER_STEPS = 30
"""Power iterations for the extreme eigenvalues: the ratio is a figure to tell, and two digits of it do."""


class Moment(ABC):
    """The second moment C [n, n] of a linear map's inputs; see `BlockMoment` and `FactorMoment`.

    Products and solutions are in float64, whatever the numbers are held in.

    Examples:
        >>> import torch
        >>> from submerge.algebra import BlockMoment
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
        >>> BlockMoment.of(x).times(torch.eye(2))
        tensor([[10.,  2.],
                [ 2.,  4.]], dtype=torch.float64)
        >>> BlockMoment.of(x, block=1).times(torch.eye(2)).diag()
        tensor([10.,  4.], dtype=torch.float64)
    """

    count: float
    """The number N of rows in the sum; scaling does not change it."""

    @property
    @abstractmethod
    def kind(self) -> str:
        """`full`, `block`, `diag`, `lowrank` or `identity`."""

    @property
    @abstractmethod
    def width(self) -> int:
        """n, the number of inputs."""

    @property
    @abstractmethod
    def trace(self) -> float:
        """The trace of C: the sum of the squares of all inputs."""

    @property
    @abstractmethod
    def singular(self) -> bool:
        """Whether C has no inverse in float64, so that `solve` takes the pseudo-inverse."""

    @abstractmethod
    def added(self, other: Moment) -> Moment:
        """Return C + C', with all rows of both; `ValueError` where they are of different kinds or widths."""

    @abstractmethod
    def scaled(self, factor: float) -> Moment:
        """Return factor · C, of the same rows."""

    @abstractmethod
    def shifted(self, ridge: float) -> Moment:
        """Return C + ridge · I."""

    @abstractmethod
    def shrunk(self, offdiag: float) -> Moment:
        """Return offdiag · C + (1 − offdiag) · diag(C), the shrinkage of RegMean (arXiv 2212.09849, §3.3)."""

    @abstractmethod
    def truncated(self, energy: float) -> Moment:
        """Return the leading eigenpairs of C that hold this share of its trace, as a `lowrank` moment."""

    @abstractmethod
    def times(self, rows: torch.Tensor) -> torch.Tensor:
        """Return A C for A [r, n], float64."""

    @abstractmethod
    def solve(self, rows: torch.Tensor) -> torch.Tensor:
        """Return A C⁻¹ for A [r, n], float64; with the pseudo-inverse where C has no inverse."""

    @abstractmethod
    def tensors(self) -> dict[str, torch.Tensor]:
        """Return what a file holds of the moment, for `Moment.from_tensors`."""

    def ridged(self, epsilon: float) -> Moment:
        """Return C + ε tr(C)/n · I, a ridge in proportion to the task's own inputs.

        A ridge of each task, unlike one of the sum, leaves three identities whole: one task gives its update,
        equal updates give that update, and in directions that no task visits the updates are averaged.
        """
        return self.shifted(epsilon * self.trace / self.width) if epsilon else self

    def per_token(self) -> Moment:
        """Return C / N, so that a task of long texts does not outweigh one of short texts."""
        return self.scaled(1 / self.count) if self.count else self

    def condition(self) -> float:
        """Return about λ_max / λ_min of C, by power iterations from below; infinity where C is singular."""
        if self.singular:
            return math.inf
        # no eigenvector is likely to be orthogonal to random numbers, as one may be to equal ones
        start = torch.randn(1, self.width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        largest = smallest = start / start.norm()
        for _ in range(POWER_STEPS):
            largest, smallest = self.times(largest), self.solve(smallest)
            most, inverse_of_least = float(largest.norm()), float(smallest.norm())
            largest, smallest = largest / most, smallest / inverse_of_least
        return max(1.0, most * inverse_of_least)

    @staticmethod
    def from_tensors(tensors: Mapping[str, torch.Tensor]) -> Moment:
        """Return the moment of `tensors()` in float64; raises `ValueError` where they are of no moment.

        Examples:
            >>> import torch
            >>> from submerge.algebra import BlockMoment, Moment
            >>> Moment.from_tensors(BlockMoment.of(torch.eye(2)).tensors()).kind
            'full'
        """
        if set(tensors) == {"sum", "count"} and tensors["sum"].ndim == 3:
            return BlockMoment(tensors["sum"].double(), tensors["count"].item())
        if set(tensors) == {"factor", "shift", "count"} and tensors["factor"].ndim == 2:
            shift, count = tensors["shift"].item(), tensors["count"].item()
            return FactorMoment(tensors["factor"].double(), shift, count)
        raise ValueError(f"{', '.join(sorted(tensors)) or 'nothing'} is no moment")


@dataclass(frozen=True, eq=False)
class BlockMoment(Moment):
    """The k diagonal blocks of C, [k, b, b] with k b = n: one block is all of C, n blocks its diagonal.

    Examples:
        >>> import torch
        >>> from submerge.algebra import BlockMoment
        >>> [BlockMoment.of(torch.ones(3, 4), block=b).kind for b in (None, 2, 1)]
        ['full', 'block', 'diag']
    """

    sum: torch.Tensor
    count: float

    @classmethod
    def of(cls, rows: torch.Tensor, block: int | None = None) -> BlockMoment:
        """Return the moment of rows [N, n], by blocks of `block` inputs; all of C by default."""
        n = rows.shape[1]
        size = n if block is None else block
        if n % size:
            raise ValueError(f"blocks of {size} do not divide {n} inputs")
        sums = torch.zeros(n // size, size, size, dtype=torch.float64, device=rows.device)
        add_products(sums, rows)
        return cls(sums, len(rows))

    @property
    def kind(self) -> str:
        k, b = self.sum.shape[:2]
        return "full" if k == 1 else "diag" if b == 1 else "block"

    @property
    def width(self) -> int:
        return self.sum.shape[0] * self.sum.shape[1]

    @property
    def trace(self) -> float:
        return float(self._diagonals.double().sum())

    @property
    def singular(self) -> bool:
        return self._cholesky is None

    @property
    def _diagonals(self) -> torch.Tensor:
        return self.sum.diagonal(dim1=1, dim2=2)  # [k, b], a view

    def added(self, other: Moment) -> BlockMoment:
        if not isinstance(other, BlockMoment) or other.sum.shape != self.sum.shape:
            raise _unlike(self, other)
        return BlockMoment(self.sum + other.sum, self.count + other.count)

    def scaled(self, factor: float) -> BlockMoment:
        return replace(self, sum=self.sum * factor)

    def shifted(self, ridge: float) -> BlockMoment:
        moment = replace(self, sum=self.sum.clone())
        moment._diagonals.add_(ridge)
        return moment

    def shrunk(self, offdiag: float) -> BlockMoment:
        moment = self.scaled(offdiag)
        moment._diagonals.copy_(self._diagonals)
        return moment

    def truncated(self, energy: float) -> FactorMoment:
        if self.kind != "full":
            raise ValueError(f"eigenpairs of {self.kind} moments are not truncated; collect full ones")
        values, vectors = torch.linalg.eigh(self.sum[0].double())
        values, vectors = values.flip(0).clamp_(min=0), vectors.flip(1)
        p = enough(values, energy)
        return FactorMoment((vectors[:, :p] * values[:p].sqrt()).T.contiguous(), 0.0, self.count)

    def times(self, rows: torch.Tensor) -> torch.Tensor:
        return _joined(torch.bmm(self._split(rows), self.sum.double()))

    def solve(self, rows: torch.Tensor) -> torch.Tensor:
        right = self._split(rows)
        if self._cholesky is None:
            values, vectors = self._eigenpairs
            return _joined(((right @ vectors) * values.unsqueeze(1)) @ vectors.mT)
        lower, scale = self._cholesky
        solved = torch.cholesky_solve((right * scale.unsqueeze(1)).mT, lower).mT
        return _joined(solved * scale.unsqueeze(1))

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"sum": self.sum, "count": torch.tensor(self.count, dtype=torch.float64)}

    def _split(self, rows: torch.Tensor) -> torch.Tensor:
        """Return A [r, n] as the columns of each block, [k, r, b], float64 and on the sums' device."""
        k, b = self.sum.shape[:2]
        return rows.to(self.sum.device).double().view(len(rows), k, b).transpose(0, 1)

    @cached_property
    def _cholesky(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """L with L Lᵀ = D C D and the diagonal D [k, b] that makes the diagonal of D C D one; None without L.

        A factorisation of a singular C may end by luck, with pivots that are rounding alone and a solution
        that is noise: so pivots have to be more than rounding. A jitter on the diagonal would take the place
        of one noise by another, 1e-16 of the right-hand side over a jitter of 1e-14.
        """
        diagonals = self._diagonals.double()
        scale = diagonals.clamp(min=torch.finfo(torch.float64).tiny).rsqrt()
        lower, info = torch.linalg.cholesky_ex(self.sum.double() * scale.unsqueeze(1) * scale.unsqueeze(2))
        least = lower.diagonal(dim1=1, dim2=2).min()
        if info.any() or not least**2 > self.sum.shape[1] * torch.finfo(torch.float64).eps:
            return None
        return lower, scale

    @cached_property
    def _eigenpairs(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The inverse eigenvalues [k, b] and the vectors [k, b, b]; 0 for eigenvalues that are rounding."""
        values, vectors = torch.linalg.eigh(self.sum.double())
        least = values[:, -1:] * self.sum.shape[1] * torch.finfo(torch.float64).eps
        return torch.where(values > least, 1 / values, 0.0), vectors


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
    def trace(self) -> float:
        return float(self.factor.double().square().sum()) + self.width * self.shift

    @property
    def singular(self) -> bool:
        return self.shift == 0 and len(self._spectrum[0]) < self.width

    def added(self, other: Moment) -> FactorMoment:
        if not isinstance(other, FactorMoment) or other.width != self.width:
            raise _unlike(self, other)
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

    @cached_property
    def _spectrum(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The singular values [p] of S above rounding, descending, and its right singular vectors [n, p]."""
        _, s, vh = torch.linalg.svd(self.factor.double(), full_matrices=False)
        rank = int((s > s[:1] * max(self.factor.shape) * torch.finfo(torch.float64).eps).sum())
        return s[:rank], vh[:rank].T


def add_products(sums: torch.Tensor, rows: torch.Tensor) -> None:
    """Add Xᵀ X of rows X [N, n] to the blocks [k, b, b] in place, in their dtype.

    Examples:
        >>> import torch
        >>> from submerge.algebra import add_products
        >>> sums = torch.zeros(2, 1, 1)
        >>> add_products(sums, torch.tensor([[1.0, 2.0], [3.0, 0.0]]))
        >>> sums.flatten()
        tensor([10.,  4.])
    """
    k, b = sums.shape[:2]
    columns = rows.to(sums.dtype).view(len(rows), k, b).permute(1, 2, 0)  # [k, b, N]
    if b == 1:
        sums.add_(columns.square().sum(2, keepdim=True))
    else:
        sums.baddbmm_(columns, columns.mT)


def _joined(blocks: torch.Tensor) -> torch.Tensor:
    """Return blocks of columns [k, r, b] side by side, [r, k b]."""
    return blocks.transpose(0, 1).reshape(blocks.shape[1], -1)


def _unlike(one: Moment, other: Moment) -> ValueError:
    what = f"a {one.kind} moment of {one.width} inputs and a {other.kind} one of {other.width}"
    return ValueError(f"{what} do not add")
