"""The plan of one tensor; and chunks and tasks, whose boundaries depend on the models and the width alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.plan.helpers_plan import entry
from submerge.engine import Input, TensorPlan
from submerge.engine.plan import chunk_length, range_length
from submerge.engine.plan.tensors._tensor import Action
from submerge.store import DTYPES, torch_dtype


@pytest.mark.parametrize(
    ("action", "word"), [("merge", "merge"), ("take_base", "base"), ("copy", "keep"), ("skip", "drop")]
)
def test_files_and_reports_have_words_of_their_own(action: Action, word: str) -> None:
    plan = TensorPlan(name="w", shape=(2, 3), dtype="F32", action=action, inputs=())
    assert plan.treatment == word


def test_an_update_of_the_origin_needs_no_values() -> None:
    tensor = entry("w", (2, 3))
    origin, one, two = Input(0, tensor), Input(1, tensor, relative=True, patch=True), Input(2, tensor)
    plan = TensorPlan(name="w", shape=(2, 3), dtype="F32", action="merge", inputs=(one, two), origin=origin)
    assert plan.members == (origin, one, two)
    assert plan.read == (origin, two)


def test_the_sides_of_any_tensor() -> None:
    def sides(*shape: int) -> tuple[int, int]:
        return TensorPlan(name="w", shape=shape, dtype="F32", action="merge", inputs=()).sides

    assert [sides(), sides(5), sides(5, 7), sides(5, 7, 3, 3)] == [(1, 1), (5, 1), (5, 7), (5, 63)]


# --- chunks and tasks, types ----------------------------------------------------------------------

COUNTS, WIDTHS = st.integers(1, 200), st.integers(1, 1 << 20)


@given(COUNTS, WIDTHS)
def test_a_chunk_holds_whole_runs_and_a_task_whole_chunks(count: int, width: int) -> None:
    chunk = chunk_length(count, width)
    assert chunk >= width
    assert chunk % width == 0
    assert range_length(chunk) % chunk == 0


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
