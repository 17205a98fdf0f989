"""The way back: a tensor of one file, out of the parameters that another file is loaded into."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from submerge.names._view import Block, Shape, View, contiguous_strides

__all__ = ["assembled"]


def assembled(shape: Shape, parts: Sequence[tuple[Block, View]]) -> View | None:
    """Return a tensor of the base as a view of a model's, from the parameters that both are parts of.

    Each block says which box of a parameter the tensor holds and where; the view beside it is the model's
    parameter. None if it cannot be written so, or if something is missing.
    """
    blocks: list[Block] = []
    try:
        for block, parameter in parts:
            dims = sorted(range(len(block.shape)), key=lambda d: -block.strides[d])
            part = parameter.box(block.start, block.shape).permute(dims)
            blocks += _placed(part, block.offset, [block.strides[d] for d in dims], shape)
    except NotImplementedError:
        return None
    complete = sum(math.prod(block.shape) for block in blocks) == math.prod(shape)
    return View(shape, tuple(blocks)) if blocks and complete else None


def _placed(part: View, offset: int, strides: Sequence[int], shape: Shape) -> list[Block]:
    """Return a part's blocks in a tensor, where its elements lie from `offset` on, `strides` apart.

    Each dimension of the part has to run along one axis of the tensor. One that leaps over elements is placed
    element by element, and one that runs on into the next row is split into rows first; both by calling this
    again. Raises `NotImplementedError` for any other.
    """
    steps = contiguous_strides(shape)
    corner = [offset // step % max(1, size) for step, size in zip(steps, shape, strict=True)]
    axes: list[int] = []
    for dim, (size, stride) in enumerate(zip(part.shape, strides, strict=True)):
        if size == 1:
            continue
        axis = next((d for d, step in enumerate(steps) if shape[d] > 1 and stride % step == 0), None)
        if axis is None:
            raise NotImplementedError(f"a stride of {stride} in {shape}")
        if stride != steps[axis]:  # every so-many-th: one by one
            other_strides = [s for d, s in enumerate(strides) if d != dim]
            rows = (part.narrow(dim, k, 1).squeeze(dim) for k in range(size))
            placed = (_placed(row, offset + k * stride, other_strides, shape) for k, row in enumerate(rows))
            return [block for blocks in placed for block in blocks]
        if corner[axis] + size > shape[axis]:  # several dimensions of the tensor in one
            if corner[axis] or size % shape[axis]:
                raise NotImplementedError(f"{size} elements from {corner[axis]} on in {shape}")
            split_shape = (*part.shape[:dim], size // shape[axis], shape[axis], *part.shape[dim + 1 :])
            split_strides = [*strides[:dim], stride * shape[axis], stride, *strides[dim + 1 :]]
            return _placed(part.reshape(split_shape), offset, split_strides, shape)
        axes.append(axis)
    if axes != sorted(set(axes)):
        raise NotImplementedError(f"strides {strides} in {shape}")
    # give the part the tensor's dimensions: one of size 1 for each axis that it does not run along
    for dim in reversed(range(len(part.shape))):
        part = part.squeeze(dim)
    for axis in range(len(shape)):
        if axis not in axes:
            part = part.unsqueeze(axis)
    for axis, by in enumerate(corner):
        part = replace(part, blocks=tuple(block.moved(axis, by) for block in part.blocks))
    return list(part.blocks)
