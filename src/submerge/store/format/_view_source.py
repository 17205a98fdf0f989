"""Ranges of a tensor that is put together from parts of others."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from typing import Any

from submerge.deferred import np, npt
from submerge.names import Block, Shape, View, contiguous_strides
from submerge.store.format._source import Source

__all__ = ["ViewSource"]

SPAN = 1 << 18
"""Elements that one read takes at most where not all of them are wanted."""
WASTE = 4
"""How many elements may be read for each one that is wanted, before reads are made smaller instead."""


class ViewSource:
    """Ranges of a view; `sources` are those of the tensors that it is made of, all of one item size.

    A range is read from those tensors alone that have a part in it, and no more is held than the range. For
    what a view is made of may be all experts of a layer, gigabytes in several files, and every reader of a
    tensor goes through it range by range.
    """

    def __init__(self, view: View, itemsize: int, sources: Mapping[str, Source]) -> None:
        self._shape = view.shape or (1,)
        blocks = view.blocks if view.shape else view.unsqueeze(0).blocks
        self._blocks = sorted(blocks, key=lambda block: block.start)
        # sorted by their first rows, so that the few near a range are found among thousands (one an expert)
        self._starts = [block.start[0] for block in self._blocks]
        self._tallest = max((block.shape[0] for block in self._blocks), default=0)
        self._unit = np.dtype(f"u{itemsize}")
        self._sources = sources

    def read(self, start: int, count: int, into: memoryview) -> None:
        """Fill `into` with elements `start … start + count − 1`."""
        numel = math.prod(self._shape)
        if start < 0 or count < 0 or start + count > numel:
            raise ValueError(f"elements {start}…{start + count} are outside a tensor of {numel}")
        out = np.frombuffer(into.cast("B"), dtype=self._unit)
        if out.size != count:
            raise ValueError(f"a buffer of {out.size} elements cannot hold {count}")
        done = 0
        for corner, shape in _boxes(self._shape, start, count):
            size = math.prod(shape)
            target = out[done : done + size].reshape(shape)
            for block in self._near(corner[0], shape[0]):
                part = block.within(corner, shape)
                if part is not None:
                    place = tuple(slice(a, a + n) for a, n in zip(part.start, part.shape, strict=True))
                    self._fill(part.source, part.offset, part.strides, target[place])
            done += size

    def _near(self, start: int, length: int) -> list[Block]:
        """Return the blocks that can have a part in some rows."""
        first = bisect_left(self._starts, start - self._tallest + 1)
        return self._blocks[first : bisect_right(self._starts, start + length - 1)]

    def _fill(self, source: str, offset: int, strides: Shape, target: npt.NDArray[Any]) -> None:
        """Fill an array with elements of a tensor that lie `strides` apart."""
        span = 1 + sum((n - 1) * s for n, s in zip(target.shape, strides, strict=True))
        steps = contiguous_strides(target.shape)
        ordered = all(n == 1 or a == b for n, a, b in zip(target.shape, strides, steps, strict=True))
        if ordered and target.flags.c_contiguous:  # as they lie: one read into the target
            self._sources[source].read(offset, target.size, target.reshape(-1).view(np.uint8).data)
        elif span <= min(SPAN, WASTE * target.size):  # near each other: one read with what lies between
            raw = np.empty(span, dtype=self._unit)
            self._sources[source].read(offset, span, raw.view(np.uint8).data)
            apart = [s * raw.itemsize for s in strides]
            target[...] = np.lib.stride_tricks.as_strided(raw, target.shape, apart)
        else:  # far apart: part by part in the dimension of the largest stride
            widest = max(range(target.ndim), key=lambda d: (target.shape[d] > 1, strides[d]))
            for i in range(target.shape[widest]):
                row = target[(slice(None),) * widest + (slice(i, i + 1),)]
                self._fill(source, offset + i * strides[widest], strides, row)


def _boxes(shape: Shape, start: int, count: int) -> Iterator[tuple[Shape, Shape]]:
    """Yield boxes, as (corner, shape), that are together a range of a tensor's elements, in order."""
    if count == 0:
        return
    if len(shape) == 1:
        yield (start,), (count,)
        return
    row = math.prod(shape[1:])
    first, skipped = divmod(start, row)
    if skipped or count < row:
        head = min(row - skipped, count)
        for corner, inner in _boxes(shape[1:], skipped, head):
            yield (first, *corner), (1, *inner)
        yield from _boxes(shape, start + head, count - head)
        return
    yield (first, *(0,) * (len(shape) - 1)), (count // row, *shape[1:])
    yield from _boxes(shape, start + count // row * row, count % row)
