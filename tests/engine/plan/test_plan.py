"""The plan as a value."""

from __future__ import annotations

from pathlib import Path

import pytest

from _models import state, write
from engine.plan.helpers_plan import entry, inputs_of, model, recipe_of
from submerge.engine import MergePlan, Settings
from submerge.engine.plan import make_plan, plan_models
from submerge.store import DTYPES

NAMES = ("embed_tokens.weight", "norm.weight")


@pytest.fixture
def plan() -> MergePlan:
    recipe = recipe_of()
    models = [model(label, *(entry(name) for name in NAMES)) for label in ("base", "one", "two")]
    return plan_models(recipe, inputs_of(recipe, *models), Settings(threads=1, max_memory=1 << 40))


def test_the_models_and_their_parts(plan: MergePlan) -> None:
    assert [found.label for found in plan.models] == ["base", "one", "two"]
    assert plan.participants == (1, 2)
    assert [plan.role(position) for position in range(3)] == ["base", "merged", "merged"]
    assert not plan.pending


def test_a_plan_of_models_compares_no_vocabularies(plan: MergePlan) -> None:
    assert (plan.tokens, plan.vocabulary) == (None, ())


def test_tensors_are_in_the_references_order(plan: MergePlan) -> None:
    assert [tensor.name for tensor in plan.tensors] == list(NAMES)
    assert plan.bytes_written == sum(shard.size for shard in plan.shards) > 0


def test_the_old_name_of_the_reference(plan: MergePlan) -> None:
    with pytest.warns(DeprecationWarning, match=r"called MergePlan\.inputs\.reference now"):
        assert plan.donor == 0


@pytest.mark.parametrize(
    ("base", "tuned", "dtype", "told"),
    [
        ("BF16", "F32", None, 1),
        ("BF16", "F32", "bfloat16", 0),
        ("BF16", "F32", "float32", 0),
        ("F32", "BF16", None, 0),
        ("BF16", "F16", None, 0),
    ],
)
def test_models_with_more_digits_than_the_base_are_told(
    base: str, tuned: str, dtype: str | None, told: int, tmp_path: Path
) -> None:
    """What is merged is rounded to the base's type, if nobody says another."""
    dtypes = {"base": base, "tuned": tuned}
    for name, code in dtypes.items():
        tensors = {n: t.to(DTYPES[code].torch) for n, t in state().items()}
        write(tmp_path / name, tensors)
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": str(tmp_path / "base"),
        "models": [{"model": str(tmp_path / "tuned"), "parameters": {"weight": 1.0}}],
        **({} if dtype is None else {"dtype": dtype}),
    }
    warnings = [line for line in make_plan(recipe).warnings if "are rounded" in line]
    assert len(warnings) == told
    if told:
        assert "9 of its tensors are F32, and are rounded to BF16" in warnings[0]
        assert "dtype: float32" in warnings[0]
