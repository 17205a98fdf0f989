"""Second moments that hold all of C, as its lower triangle: half of the numbers, and half of the products."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from submerge.algebra._block_moment import BlockMoment
from submerge.algebra._factor_moment import FactorMoment
from submerge.algebra._moment import Moment, unlike
from submerge.algebra._symmetric_inverse import SymmetricInverse
from submerge.deferred import torch

__all__ = ["ProductSum", "TriangleMoment"]

ROWS = 512
"""Rows of a triangle that are multiplied at a time: of 4096 inputs 1/8 of the products are computed twice."""


@dataclass(frozen=True, eq=False)
class TriangleMoment(Moment):
    """The rows of the lower triangle of C up to the diagonal, one after another, [n (n + 1) / 2].

    Examples:
        >>> import torch
        >>> from submerge.algebra import TriangleMoment
        >>> moment = TriangleMoment.of(torch.tensor([[1.0, 2.0], [3.0, 0.0]]))
        >>> moment.triangle
        tensor([10.,  2.,  4.], dtype=torch.float64)
        >>> moment.times(torch.eye(2))
        tensor([[10.,  2.],
                [ 2.,  4.]], dtype=torch.float64)
    """

    triangle: torch.Tensor
    count: float

    @classmethod
    def of(cls, rows: torch.Tensor) -> TriangleMoment:
        """Return the moment of rows [N, n], in float64."""
        products = ProductSum(rows.shape[1], torch.float64)
        products.add(rows)
        return cls(products.triangle, len(rows))

    @classmethod
    def of_square(cls, moment: BlockMoment) -> TriangleMoment:
        """Return a moment of one block, of which the lower triangle is read."""
        square = moment.sum[0]
        return cls(_packed(len(square), [(0, square)]), moment.count)

    @property
    def kind(self) -> str:
        return "full"

    @property
    def width(self) -> int:
        return (math.isqrt(8 * len(self.triangle) + 1) - 1) // 2

    @property
    def dtype(self) -> torch.dtype:
        return self.triangle.dtype

    @property
    def trace(self) -> float:
        return float(self.triangle[self._diagonal].double().sum())

    @property
    def singular(self) -> bool:
        return self._inverse.singular

    @property
    def least_share(self) -> float:
        return self._inverse.least_share

    @property
    def _diagonal(self) -> torch.Tensor:
        """Where the diagonal lies in the triangle [n]."""
        i = torch.arange(self.width, device=self.triangle.device)
        return i * (i + 3) // 2

    def added(self, other: Moment) -> TriangleMoment:
        if isinstance(other, BlockMoment) and other.kind == "full":
            other = TriangleMoment.of_square(other)
        if not isinstance(other, TriangleMoment) or other.width != self.width:
            raise unlike(self, other)
        return TriangleMoment(self.triangle + other.triangle, self.count + other.count)

    def scaled(self, factor: float) -> TriangleMoment:
        return replace(self, triangle=self.triangle * factor)

    def shifted(self, ridge: float) -> TriangleMoment:
        moment = replace(self, triangle=self.triangle.clone())
        moment.triangle[self._diagonal] += ridge
        return moment

    def shrunk(self, offdiag: float) -> TriangleMoment:
        moment = self.scaled(offdiag)
        moment.triangle[self._diagonal] = self.triangle[self._diagonal]
        return moment

    def truncated(self, energy: float) -> FactorMoment:
        return BlockMoment(self._lower(), self.count).truncated(energy)

    def times(self, rows: torch.Tensor) -> torch.Tensor:
        rows = rows.to(self.triangle.device).double()
        product = torch.zeros_like(rows)
        for start, block in self._block_rows():
            own = rows[:, start : start + len(block)]
            square = block[:, start:].tril(-1)
            product[:, : start + len(block)].addmm_(own, block)
            product[:, start : start + len(block)].addmm_(rows[:, :start], block[:, :start].T)
            product[:, start : start + len(block)].addmm_(own, square.T)
        return product

    def solve(self, rows: torch.Tensor) -> torch.Tensor:
        return self._inverse.applied(rows.to(self.triangle.device).double().unsqueeze(0))[0]

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"triangle": self.triangle, "count": torch.tensor(self.count, dtype=torch.float64)}

    @classmethod
    def _of_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> TriangleMoment | None:
        if set(tensors) != {"triangle", "count"} or tensors["triangle"].ndim != 1:
            return None
        return cls(tensors["triangle"], tensors["count"].item())

    def _block_rows(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield the first row of each block of rows, and the block, [b, up to the diagonal], in float64."""
        n = self.width
        for start in range(0, n, ROWS):
            stop = min(start + ROWS, n)
            block = self.triangle.new_zeros(stop - start, stop, dtype=torch.float64)
            for i in range(start, stop):
                block[i - start, : i + 1] = self.triangle[i * (i + 1) // 2 :][: i + 1]
            yield start, block

    def _lower(self) -> torch.Tensor:
        """Return C [1, n, n] in float64, with zeros above the diagonal."""
        n = self.width
        square = self.triangle.new_zeros(1, n, n, dtype=torch.float64)
        for start, block in self._block_rows():
            square[0, start : start + len(block), : block.shape[1]] = block
        return square

    @cached_property
    def _inverse(self) -> SymmetricInverse:
        return SymmetricInverse(self._lower)


class ProductSum:
    """The sum of Xᵀ X over rows X [N, n] that come one batch after another, as blocks of the lower triangle.

    Half of the multiply-adds of a whole product, and half of its memory.

    Examples:
        >>> import torch
        >>> from submerge.algebra import ProductSum
        >>> products = ProductSum(2, torch.float32)
        >>> products.add(torch.tensor([[1.0, 2.0], [3.0, 0.0]]))
        >>> products.triangle
        tensor([10.,  2.,  4.])
    """

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        self._width = width
        starts = range(0, width, ROWS)
        stops = [min(start + ROWS, width) for start in starts]
        self._blocks = [torch.zeros(b - a, b, dtype=dtype) for a, b in zip(starts, stops, strict=True)]

    def add(self, rows: torch.Tensor) -> None:
        """Add Xᵀ X of rows X [N, n], in the dtype of the sum and on the rows' device."""
        x = rows.to(self._blocks[0].dtype)
        for number, block in enumerate(self._blocks):
            self._blocks[number] = block = block.to(rows.device)
            stop = block.shape[1]
            block.addmm_(x[:, stop - len(block) : stop].T, x[:, :stop])

    @property
    def triangle(self) -> torch.Tensor:
        """The lower triangle of the sum, as `TriangleMoment` has it."""
        return _packed(self._width, [(block.shape[1] - len(block), block) for block in self._blocks])


def _packed(n: int, blocks: list[tuple[int, torch.Tensor]]) -> torch.Tensor:
    """Return the lower triangle [n (n + 1) / 2] of blocks of rows, each with its first row.

    Row by row: the indices of all elements at once would take more memory than the matrix.
    """
    triangle = blocks[0][1].new_empty(n * (n + 1) // 2)
    for start, block in blocks:
        for i, row in enumerate(block, start):
            triangle[i * (i + 1) // 2 :][: i + 1] = row[: i + 1]
    return triangle
