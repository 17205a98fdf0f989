"""Tensors that are put together from parts of other tensors, as places alone: no value is looked at."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple, TypeAlias

__all__ = ["Block", "Shape", "View", "contiguous_strides"]

Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """A box of a view, and which elements of one tensor fill it.

    Element `start + i` of the view is element `offset + Σ i · strides` of `source`, counted in its file's
    order, for every i in a box of `shape`. The source has `total` elements.
    """

    source: str
    total: int
    start: Shape
    shape: Shape
    offset: int
    strides: Shape

    def within(self, start: Shape, shape: Shape) -> Block | None:
        """Return the part of the block that lies in a box, placed from the box's start; None if none does."""
        low = tuple(max(own, box) for own, box in zip(self.start, start, strict=True))
        ends = zip(self.start, self.shape, start, shape, strict=True)
        high = tuple(min(own + size, box + box_size) for own, size, box, box_size in ends)
        sizes = tuple(end - begin for end, begin in zip(high, low, strict=True))
        if any(size <= 0 for size in sizes):
            return None
        skipped = sum((at - own) * s for at, own, s in zip(low, self.start, self.strides, strict=True))
        place = tuple(at - box for at, box in zip(low, start, strict=True))
        return replace(self, start=place, shape=sizes, offset=self.offset + skipped)

    def permuted(self, order: Sequence[int]) -> Block:
        """Return the block with its dimensions in another order."""
        start, shape, strides = (tuple(v[d] for d in order) for v in (self.start, self.shape, self.strides))
        return replace(self, start=start, shape=shape, strides=strides)

    def moved(self, dim: int, by: int) -> Block:
        """Return the block as it lies in a view that has `by` more elements before it in one dimension."""
        return replace(self, start=tuple(v + by * (d == dim) for d, v in enumerate(self.start)))


@dataclass(frozen=True, slots=True)
class View:
    """A tensor of `shape` that is made of blocks, which cover it without hole or overlap.

    It has the operations by which models take weights apart and put them together; each returns a new view.
    All raise `NotImplementedError` for what cannot be written as blocks.
    """

    shape: Shape
    blocks: tuple[Block, ...]

    @classmethod
    def of(cls, source: str, shape: Shape) -> View:
        """Return a view of all of a tensor, as it is."""
        block = Block(source, math.prod(shape), (0,) * len(shape), shape, 0, contiguous_strides(shape))
        return cls(shape, (block,))

    @classmethod
    def joined(cls, views: Sequence[View], dim: int) -> View:
        """Return views one after another along a dimension that they have."""
        cross_sections = {tuple(n for d, n in enumerate(v.shape) if d != dim) for v in views}
        if len(cross_sections) != 1 or not 0 <= dim < len(views[0].shape):
            raise NotImplementedError(f"shapes {[v.shape for v in views]} do not go together along {dim}")
        blocks: list[Block] = []
        length = 0
        for view in views:
            blocks += [block.moved(dim, length) for block in view.blocks]
            length += view.shape[dim]
        return cls(tuple(length if d == dim else n for d, n in enumerate(views[0].shape)), tuple(blocks))

    @property
    def numel(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def sources(self) -> list[str]:
        """The tensors that it is made of, each once, in the order of the blocks."""
        return list(dict.fromkeys(block.source for block in self.blocks))

    @property
    def alias(self) -> str | None:
        """The tensor that it is in all but the name; None if it is only like a part of one, or of several."""
        if len(self.blocks) != 1:
            return None
        (block,) = self.blocks
        is_complete = block.shape == self.shape and block.total == self.numel
        in_order = all(
            size == 1 or stride == step  # in a dimension of one element no step is ever taken
            for size, stride, step in zip(
                self.shape, block.strides, contiguous_strides(self.shape), strict=True
            )
        )
        return block.source if is_complete and in_order else None

    def box(self, start: Shape, shape: Shape) -> View:
        """Return a box of the view as a view of its own."""
        parts = (block.within(start, shape) for block in self.blocks)
        return View(shape, tuple(part for part in parts if part is not None))

    def narrow(self, dim: int, start: int, length: int) -> View:
        """Return the elements [start, start + length) of one dimension."""
        low = tuple(start * (d == dim) for d in range(len(self.shape)))
        return self.box(low, tuple(length if d == dim else n for d, n in enumerate(self.shape)))

    def permute(self, order: Sequence[int]) -> View:
        """Return the view with its dimensions in another order."""
        return View(tuple(self.shape[d] for d in order), tuple(b.permuted(order) for b in self.blocks))

    def squeeze(self, dim: int) -> View:
        """Return the view without a dimension of one element; as it is, if there are more."""
        return self if self.shape[dim] != 1 else self.permute([d for d in range(len(self.shape)) if d != dim])

    def unsqueeze(self, dim: int) -> View:
        """Return the view with a dimension of one element before `dim`."""

        def put(values: Shape, value: int) -> Shape:
            return (*values[:dim], value, *values[dim:])

        blocks = (
            replace(b, start=put(b.start, 0), shape=put(b.shape, 1), strides=put(b.strides, 0))
            for b in self.blocks
        )
        return View(put(self.shape, 1), tuple(blocks))

    def reshape(self, shape: Shape) -> View:
        """Return the elements, in their order, in another shape."""
        if shape == self.shape:
            return self
        if len(self.blocks) != 1 or self.blocks[0].shape != self.shape or 0 in shape:
            raise NotImplementedError(f"a view of {len(self.blocks)} blocks cannot be taken as {shape}")
        (block,) = self.blocks
        boxes: list[list[_Run]] = []
        for old, new in _groups(self.shape, shape):
            sizes, strides = [self.shape[d] for d in old], [block.strides[d] for d in old]
            boxes.append(list(_runs(sizes, strides, [shape[d] for d in new])))
        return View(shape, tuple(_with_runs(block, runs) for runs in product(*boxes)))


class _Run(NamedTuple):
    """Some dimensions of a block: how far they are from its offset, and their part of its box."""

    offset: int
    start: Shape
    shape: Shape
    strides: Shape


def _with_runs(block: Block, runs: Sequence[_Run]) -> Block:
    """Return the part of a block that takes one run in each group of dimensions."""
    return replace(
        block,
        start=tuple(position for run in runs for position in run.start),
        shape=tuple(size for run in runs for size in run.shape),
        offset=block.offset + sum(run.offset for run in runs),
        strides=tuple(stride for run in runs for stride in run.strides),
    )


def contiguous_strides(shape: Shape) -> Shape:
    """Return how far apart, in elements, neighbours of each dimension are in a tensor without gaps."""
    strides = [1] * len(shape)
    for d in range(len(shape) - 2, -1, -1):
        strides[d] = strides[d + 1] * shape[d + 1]
    return tuple(strides)


def _groups(old: Shape, new: Shape) -> Iterator[tuple[list[int], list[int]]]:
    """Yield groups of dimensions of both shapes that hold equally many elements, as short as can be.

    (6, 4) and (2, 3, 4) give ([0], [0, 1]) and ([1], [2]): each group is taken apart by itself.
    """
    i = j = 0
    while i < len(old) or j < len(new):
        old_dims: list[int] = []
        new_dims: list[int] = []
        old_size = new_size = 1
        while not old_dims or not new_dims or old_size != new_size:
            if i < len(old) and (old_size <= new_size or j >= len(new)):
                old_dims.append(i)
                old_size, i = old_size * old[i], i + 1
            elif j < len(new):
                new_dims.append(j)
                new_size, j = new_size * new[j], j + 1
            elif old_size == new_size:  # dimensions of one element at an end
                break
            else:
                raise NotImplementedError(f"{old} has not as many elements as {new}")
        yield old_dims, new_dims


def _runs(sizes: Sequence[int], strides: Sequence[int], shape: Sequence[int]) -> Iterator[_Run]:
    """Yield the boxes of a group in its new shape.

    Old dimensions that follow each other without a gap are one run; a run for each place of the others.
    """
    outer = [(n, s) for n, s in zip(sizes, strides, strict=True) if n != 1] or [(1, 0)]
    length, stride = outer.pop()
    while outer and outer[-1][1] == length * stride:
        length *= outer.pop()[0]
    if outer and len(shape) > 1:
        raise NotImplementedError("dimensions that are not neighbours cannot be taken apart anew")
    inner = tuple(stride * s for s in contiguous_strides(tuple(shape)))
    for number, place in enumerate(product(*(range(n) for n, _ in outer))):
        offset = sum(p * s for p, (_, s) in zip(place, outer, strict=True))
        if outer:
            yield _Run(offset, (number * length,), (length,), (stride,))
        else:
            yield _Run(offset, (0,) * len(shape), tuple(shape), inner)
