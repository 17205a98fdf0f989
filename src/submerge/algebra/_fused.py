"""Fused matrices: several linear maps of one input that a model stores as one matrix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from submerge.algebra._update import Dense, LowRank, Streamed, Update, Zero
from submerge.deferred import torch

__all__ = ["FusedLayout"]


@dataclass(frozen=True)
class FusedLayout:
    """Which rows of a fused matrix belong to which of its maps.

    The rows are `groups` runs of equal length. Each has `sizes[0]` rows of the first map, then `sizes[1]` of
    the second, and so on: one group where the maps stand one after another, and one for each head, or group
    of heads, where these are interleaved. The rows of a map keep their order.

    Attributes:
        maps: names, as reports have them.
        sizes: rows of each map in a group.
        groups: how often that repeats.
        axis: 0, or 1 where columns take the place of rows: a matrix that is stored as [inputs, outputs].

    Examples:
        >>> from submerge.algebra import FusedLayout
        >>> heads = FusedLayout(("q", "k", "v"), (4, 4, 4), groups=2)
        >>> heads.length, heads.shapes((24, 8))
        (24, [(8, 8), (8, 8), (8, 8)])
    """

    maps: tuple[str, ...]
    sizes: tuple[int, ...]
    groups: int = 1
    axis: int = 0

    @property
    def period(self) -> int:
        """The rows of a group."""
        return sum(self.sizes)

    @property
    def length(self) -> int:
        """The rows of all maps."""
        return self.groups * self.period

    def shapes(self, shape: tuple[int, int]) -> list[tuple[int, int]]:
        """Return the shape of each map of a fused matrix of this shape."""
        rows = [self.groups * size for size in self.sizes]
        return [(shape[0], n) if self.axis else (n, shape[1]) for n in rows]

    def split(self, update: Update) -> list[Update]:
        """Return the update of each map, in the update's own form: one of two factors is shared by all.

        Args:
            update: of the fused matrix.

        Raises:
            ValueError: the matrix has another number of rows than the layout.

        Examples:
            >>> import torch
            >>> from submerge.algebra import Dense, FusedLayout
            >>> fused = Dense(torch.arange(4.0).view(4, 1))
            >>> for part in FusedLayout(("k", "v"), (1, 1), groups=2).split(fused):
            ...     part.dense().flatten().tolist()
            [0.0, 2.0]
            [1.0, 3.0]
        """
        if update.shape[self.axis] != self.length:
            raise ValueError(f"{list(update.shape)} does not have {self.length} on side {self.axis}")
        return [self._part(update, which) for which in range(len(self.maps))]

    def join(self, parts: Sequence[Update]) -> Update:
        """Return the fused update of those of the maps: the inverse of `split`.

        Parts that are all low-rank or zero make factors, whose rank is the sum of theirs: side by side on the
        inputs' side, and each on the rows of its map, with zeros elsewhere. Others make rows.

        Examples:
            >>> import torch
            >>> from submerge.algebra import FusedLayout, LowRank, Zero
            >>> one = LowRank(torch.ones(2, 1), torch.tensor([[1.0, 2.0]]))
            >>> joined = FusedLayout(("q", "k", "v"), (1, 1, 1), groups=2).join([one, Zero((2, 2)), one])
            >>> joined.rank, joined.dense()[:, 0].tolist()
            (2, [1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
        """
        fixed = parts[0].shape[1 - self.axis]
        shape = (fixed, self.length) if self.axis else (self.length, fixed)
        if all(isinstance(part, (LowRank, Zero)) for part in parts):
            return self._side_by_side(parts, shape)

        def rows(start: int, stop: int) -> torch.Tensor:
            return self._rows_of_all(parts, shape, start, stop)

        streams = [part for part in parts if isinstance(part, Streamed)]
        return Streamed(shape, rows, streams[0].dtype) if streams else Dense(rows(0, shape[0]))

    def _part(self, update: Update, which: int) -> Update:
        shape = self.shapes(update.shape)[which]
        if isinstance(update, Zero):
            return Zero(shape)
        if isinstance(update, LowRank) and self.axis:
            return LowRank(update.left, update.right[:, self._places(which)])
        if isinstance(update, LowRank):
            return LowRank(update.left[self._places(which)], update.right)
        if isinstance(update, Dense):
            places = self._places(which)
            return Dense(update.matrix[:, places] if self.axis else update.matrix[places])
        assert isinstance(update, Streamed)
        return Streamed(shape, lambda start, stop: self._rows(update, which, start, stop), update.dtype)

    def _rows(self, update: Streamed, which: int, start: int, stop: int) -> torch.Tensor:
        """Return rows [start, stop) of a map, of those of the fused update."""
        if self.axis:
            return update.rows(start, stop)[:, self._places(which)]
        runs = [update.rows(*run) for run in self._runs(which, start, stop)]
        return torch.cat(runs) if runs else torch.empty(0, update.shape[1], dtype=update.dtype)

    def _places(self, which: int) -> slice | torch.Tensor:
        """Return where the rows of a map stand: as a slice, which copies nothing, where they are one run."""
        first = sum(self.sizes[:which])
        if self.groups == 1:
            return slice(first, first + self.sizes[which])
        rows = torch.arange(self.length).view(self.groups, self.period)
        return rows[:, first : first + self.sizes[which]].reshape(-1)

    def _runs(self, which: int, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield where rows [start, stop) of a map stand, as runs of rows of the fused matrix."""
        size, first = self.sizes[which], sum(self.sizes[:which])
        for group in range(start // size, -(-stop // size)):
            shift = group * (self.period - size) + first
            yield max(start, group * size) + shift, min(stop, (group + 1) * size) + shift

    def _before(self, which: int, row: int) -> int:
        """Return how many rows of a map stand before a row of the fused matrix."""
        size, within = self.sizes[which], row % self.period - sum(self.sizes[:which])
        return row // self.period * size + min(max(within, 0), size)

    def _side_by_side(self, parts: Sequence[Update], shape: tuple[int, int]) -> LowRank | Zero:
        factors = {which: part for which, part in enumerate(parts) if isinstance(part, LowRank)}
        if not factors:
            return Zero(shape)
        shared = [part.left if self.axis else part.right for part in factors.values()]
        rank = sum(part.left.shape[1] for part in factors.values())
        own = shared[0].new_zeros((rank, shape[1]) if self.axis else (shape[0], rank))
        first = 0
        for which, part in factors.items():
            last = first + part.left.shape[1]
            if self.axis:
                own[first:last, self._places(which)] = part.right
            else:
                own[self._places(which), first:last] = part.left
            first = last
        return LowRank(torch.cat(shared, dim=1), own) if self.axis else LowRank(own, torch.cat(shared))

    def _rows_of_all(
        self, parts: Sequence[Update], shape: tuple[int, int], start: int, stop: int
    ) -> torch.Tensor:
        dtypes = (part.dtype for part in parts if isinstance(part, (Dense, Streamed)))
        out = torch.zeros(stop - start, shape[1], dtype=next(dtypes))
        for which, part in enumerate(parts):
            if self.axis:
                out[:, self._places(which)] = part.rows(start, stop).to(out.dtype)
                continue
            first, last = (self._before(which, row) for row in (start, stop))
            if first == last:
                continue
            values, taken = part.rows(first, last), 0
            for top, bottom in self._runs(which, first, last):
                out[top - start : bottom - start] = values[taken : taken + bottom - top]
                taken += bottom - top
        return out
