"""The plan as a value."""

from __future__ import annotations

import pytest

from engine.plan.helpers_plan import entry, inputs_of, model, recipe_of
from submerge.engine import MergePlan, Settings
from submerge.engine.plan import plan_models

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
