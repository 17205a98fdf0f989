"""Buffers that are used again: for one use and dtype there is one, as large as the largest request."""

import pytest
import torch

from submerge.engine.work import Workspace
from submerge.store import byte_view


@pytest.fixture
def space() -> Workspace:
    return Workspace(torch.device("cpu"))


def test_a_shorter_request_is_the_beginning_of_the_same_buffer(space: Workspace) -> None:
    long = space.work("sum", 100, torch.float32)
    short = space.work("sum", 10, torch.float32)
    assert short.data_ptr() == long.data_ptr()
    assert len(short) == 10
    assert space.work("sum", 100, torch.float32).data_ptr() == long.data_ptr()


def test_uses_and_dtypes_do_not_share_memory(space: Workspace) -> None:
    buffers = [
        space.work("sum", 8, torch.float32),
        space.work("mask", 8, torch.float32),
        space.work("sum", 8, torch.float64),
        space.host("raw", 8, torch.float32)[0],
    ]
    assert len({buffer.data_ptr() for buffer in buffers}) == len(buffers)


def test_a_buffer_that_grew_replaces_the_views_of_the_smaller_one(space: Workspace) -> None:
    space.work("sum", 8, torch.float32).fill_(1)
    grown = space.work("sum", 1000, torch.float32)
    assert space.work("sum", 8, torch.float32).data_ptr() == grown.data_ptr()


def test_many_lengths_do_not_make_many_buffers(space: Workspace) -> None:
    longest = space.work("sum", 500, torch.float32)
    places = {space.work("sum", count, torch.float32).data_ptr() for count in range(1, 500)}
    assert places == {longest.data_ptr()}


def test_rows_are_those_of_the_stack(space: Workspace) -> None:
    stack, rows = space.stack("updates", 3, 5, torch.float32)
    for number, row in enumerate(rows):
        row.fill_(number)
    assert stack.tolist() == [[float(number)] * 5 for number in range(3)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_bytes_are_those_of_the_tensor(space: Workspace, dtype: torch.dtype) -> None:
    buffer, view = space.host("raw", 4, dtype)
    view[:] = byte_view(torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=dtype))
    assert buffer.tolist() == [1.0, -2.0, 0.5, 0.0]
    wide = space.work("row", 4, torch.float64)
    space.bring(buffer, wide)
    assert wide.tolist() == buffer.tolist()
    space.take(wide * 2, buffer)
    assert buffer.tolist() == [2.0, -4.0, 1.0, 0.0]
