"""How a tensor is cut into ranges, and its chunks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.work.helpers_work import reader_of, space
from submerge.engine.work import _chunk_reader, ranges
from submerge.engine.work._chunk_reader import sample_spans


@given(numel=st.integers(0, 300), length=st.integers(1, 40))
def test_ranges_cover_a_tensor(numel: int, length: int) -> None:
    cut = ranges(numel, length)
    assert [one.number for one in cut] == list(range(len(cut)))
    assert [i for one in cut for i in range(one.start, one.stop)] == list(range(numel))
    assert all(one.stop - one.start == length for one in cut[:-1])


def test_a_sample_is_spread_over_the_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_chunk_reader, "SAMPLE_RUNS", 3)
    monkeypatch.setattr(_chunk_reader, "SAMPLE_LENGTH", 10)
    assert sample_spans(30) == [(0, 30)]
    assert sample_spans(1000) == [(0, 10), (495, 505), (990, 1000)]
    assert sample_spans(18, width=6) == [(0, 18)]
    assert sample_spans(1002, width=6) == [(0, 6), (498, 504), (996, 1002)]
    assert sample_spans(100, width=25) == [(0, 25), (25, 50), (75, 100)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_chunk_is_the_updates_in_the_type_of_the_arithmetic(dtype: torch.dtype) -> None:
    base, one, two = (torch.arange(12).to(dtype) * factor for factor in (1, 3, 5))
    reader = reader_of([one, two], base=base)
    (chunk,) = reader.chunks(2, 7, space())
    assert chunk.updates.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert chunk.updates.tolist() == [[4, 6, 8, 10, 12], [8, 12, 16, 20, 24]]
    assert (chunk.start, chunk.finite, chunk.rounding) == (2, True, 0.0)
    workspace = space()
    (chunk,) = reader.chunks(2, 7, workspace)
    assert reader.origin_of(chunk, workspace).tolist() == [2, 3, 4, 5, 6]


def test_without_an_origin_a_chunk_is_the_values() -> None:
    (chunk,) = reader_of([torch.ones(4), torch.full((4,), 2.0)], "linear").chunks(0, 4, space())
    assert chunk.updates.tolist() == [[1.0] * 4, [2.0] * 4]


def test_a_copied_parameter_has_the_random_numbers_of_its_own_name() -> None:
    one = reader_of([torch.ones(4)])
    other = reader_of([torch.ones(4)], parameter="v")
    assert next(one.chunks(0, 4, space())).keys != next(other.chunks(0, 4, space())).keys
