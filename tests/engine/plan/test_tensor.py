"""Chunks and tasks: whole runs, and boundaries that depend on nothing but the models and the width."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from submerge.engine.plan import chunk_length, task_length, torch_dtype
from submerge.store import DTYPES

COUNTS, WIDTHS = st.integers(1, 200), st.integers(1, 1 << 20)


@given(COUNTS, WIDTHS)
def test_a_chunk_holds_whole_runs_and_a_task_whole_chunks(count: int, width: int) -> None:
    chunk = chunk_length(count, width)
    assert chunk >= width
    assert chunk % width == 0
    assert task_length(chunk) % chunk == 0


@given(COUNTS)
def test_chunks_of_single_elements_are_powers_of_two(count: int) -> None:
    chunk = chunk_length(count, 1)
    assert chunk & (chunk - 1) == 0
    assert chunk_length(count + 1, 1) <= chunk, "more models, no longer chunks"


@pytest.mark.parametrize("code", [code for code, dtype in DTYPES.items() if dtype.torch is not None])
def test_types_of_torch(code: str) -> None:
    assert torch_dtype(code) is DTYPES[code].torch


def test_a_type_that_torch_lacks_is_a_bug() -> None:
    lacking = [code for code, dtype in DTYPES.items() if dtype.torch is None]
    for code in lacking:
        with pytest.raises(ValueError, match="no torch type"):
            torch_dtype(code)
