"""Second moments that are held as the diagonal blocks of C: all of it, blocks of inputs, or the diagonal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from submerge.algebra._factor_moment import FactorMoment
from submerge.algebra._moment import Moment, unlike
from submerge.algebra._spectrum import enough
from submerge.algebra._symmetric_inverse import SymmetricInverse
from submerge.deferred import torch

__all__ = ["BlockMoment", "add_products"]


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
    def dtype(self) -> torch.dtype:
        return self.sum.dtype

    @property
    def trace(self) -> float:
        return float(self._diagonals.double().sum())

    @property
    def singular(self) -> bool:
        return self._inverse.singular

    @property
    def least_share(self) -> float:
        return self._inverse.least_share

    @property
    def _diagonals(self) -> torch.Tensor:
        return self.sum.diagonal(dim1=1, dim2=2)  # [k, b], a view

    def added(self, other: Moment) -> Moment:
        if self.kind == other.kind == "full" and not isinstance(other, BlockMoment):
            return other.added(self)
        if not isinstance(other, BlockMoment) or other.sum.shape != self.sum.shape:
            raise unlike(self, other)
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
        return _joined(self._inverse.applied(self._split(rows)))

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"sum": self.sum, "count": torch.tensor(self.count, dtype=torch.float64)}

    @classmethod
    def _of_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> BlockMoment | None:
        if set(tensors) != {"sum", "count"} or tensors["sum"].ndim != 3:
            return None
        return cls(tensors["sum"], tensors["count"].item())

    def _split(self, rows: torch.Tensor) -> torch.Tensor:
        """Return A [r, n] as the columns of each block, [k, r, b], float64 and on the sums' device."""
        k, b = self.sum.shape[:2]
        return rows.to(self.sum.device).double().view(len(rows), k, b).transpose(0, 1)

    @cached_property
    def _inverse(self) -> SymmetricInverse:
        return SymmetricInverse(lambda: self.sum.to(torch.float64, copy=True))


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
