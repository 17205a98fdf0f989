"""The plan of one tensor."""

from __future__ import annotations

import pytest

from engine.plan.helpers_plan import entry
from submerge.engine import Input, TensorPlan
from submerge.engine.plan._tensor import Action


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
