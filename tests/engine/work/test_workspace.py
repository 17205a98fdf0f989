"""Buffers that are used again: for one use and dtype there is one, as large as the largest request."""

import numpy as np
import pytest

from submerge.engine.work import Workspace

SINGLE, DOUBLE = np.dtype(np.float32), np.dtype(np.float64)


@pytest.fixture
def space() -> Workspace:
    return Workspace()


def place(row: np.ndarray) -> int:
    return row.ctypes.data


def test_a_shorter_request_is_the_beginning_of_the_same_buffer(space: Workspace) -> None:
    long = space.row("sum", 100, SINGLE)
    short = space.row("sum", 10, SINGLE)
    assert place(short) == place(long)
    assert len(short) == 10
    assert place(space.row("sum", 100, SINGLE)) == place(long)


def test_uses_and_dtypes_do_not_share_memory(space: Workspace) -> None:
    buffers = [space.row("sum", 8, SINGLE), space.row("mask", 8, SINGLE), space.row("sum", 8, DOUBLE)]
    assert len({place(buffer) for buffer in buffers}) == len(buffers)


def test_a_buffer_that_grew_replaces_the_views_of_the_smaller_one(space: Workspace) -> None:
    space.row("sum", 8, SINGLE).fill(1)
    grown = space.row("sum", 1000, SINGLE)
    assert place(space.row("sum", 8, SINGLE)) == place(grown)


def test_many_lengths_do_not_make_many_buffers(space: Workspace) -> None:
    longest = space.row("sum", 500, SINGLE)
    assert {place(space.row("sum", count, SINGLE)) for count in range(1, 500)} == {place(longest)}


def test_rows_are_those_of_the_stack(space: Workspace) -> None:
    stack, rows = space.stack("updates", 3, 5, SINGLE)
    for number, row in enumerate(rows):
        row.fill(number)
    assert stack.tolist() == [[float(number)] * 5 for number in range(3)]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
def test_buffers_begin_with_a_cache_line(space: Workspace, dtype: type) -> None:
    row = space.row("raw", 1001, np.dtype(dtype))
    assert place(row) % 64 == 0
    assert (row.dtype, row.shape) == (dtype, (1001,))
