"""What happens to one tensor of the output: one test for each case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from engine.plan.helpers_plan import SHAPE, entry, inputs_of, low_rank, model, recipe_of
from submerge.engine.plan.tensors._align import TensorPlanner
from submerge.engine.plan.tensors._tensor import TensorPlan
from submerge.engine.plan.tensors._tensor_rules import TensorRules
from submerge.recipe import Recipe
from submerge.store import Checkpoint, TensorEntry

NAME = "model.layers.0.mlp.up_proj.weight"
TALL = (5, 6)


def planner(
    recipe: Recipe,
    *models: Checkpoint,
    lacks: Sequence[Mapping[str, str]] = ({}, {}, {}),
    copies: Mapping[str, str] | None = None,
) -> TensorPlanner:
    return TensorPlanner(TensorRules(recipe, inputs_of(recipe, *models), copies or {}), lacks)


def of_tensors(recipe: Recipe, *tensors: TensorEntry | None, **more: Any) -> TensorPlanner:
    """Return the planner of models with one tensor each, or without it."""
    labels = ("base", "one", "two")[3 - len(tensors) :]
    models = (model(label, *([t] if t else [])) for label, t in zip(labels, tensors, strict=True))
    return planner(recipe, *models, **more)


def planned(tensor_planner: TensorPlanner) -> TensorPlan:
    (plan,) = tensor_planner.plan_all()
    assert not problems(tensor_planner)
    return plan


def problems(tensor_planner: TensorPlanner) -> list[str]:
    return [str(problem) for problem in tensor_planner.findings.problems(tensor_planner.rules.inputs)]


def same(shape: tuple[int, ...] = SHAPE, dtype: str = "F32") -> TensorEntry:
    return entry(NAME, shape, dtype)


# --- merged ---------------------------------------------------------------------------------------


def test_a_float_tensor_of_all_models_is_merged() -> None:
    plan = planned(of_tensors(recipe_of(), same(), same(), same()))
    assert (plan.action, plan.treatment) == ("merge", "merge")
    assert [member.model for member in plan.inputs] == [1, 2]
    assert plan.origin is not None
    assert plan.origin.model == 0
    assert plan.values["weight"] == [0.5, 0.5]
    assert (plan.dtype, plan.why, plan.parameter) == ("F32", "", NAME)


def test_weights_themselves_are_merged_without_an_origin() -> None:
    plan = planned(of_tensors(recipe_of("linear", base=False), same(), same()))
    assert plan.origin is None
    assert [member.model for member in plan.inputs] == [0, 1]


@pytest.mark.parametrize("keys", [{"dtype": "bfloat16"}, {"dtype": "float16", "out_dtype": "bfloat16"}])
def test_the_type_is_that_of_the_recipe(keys: dict[str, str]) -> None:
    assert planned(of_tensors(recipe_of(**keys), same(), same(), same())).dtype == "BF16"


def test_a_method_of_matrices_gets_linear_maps_alone() -> None:
    recipe = recipe_of("tsv_m", parameters={})
    assert planned(of_tensors(recipe, same(), same(), same())).matrix
    table = entry("model.embed_tokens.weight")
    plan = planned(of_tensors(recipe, table, table, table))
    assert (plan.matrix, plan.table) == (False, True)


def test_a_gate_may_ask_for_every_tensor() -> None:
    norm = entry("model.norm.weight", (6,))
    assert planned(of_tensors(recipe_of("mass", parameters={}), norm, norm, norm)).matrix


def test_a_copy_has_the_options_of_what_it_is_a_copy_of() -> None:
    recipe = recipe_of(parameters={"weight": [{"filter": "up_proj", "value": 0.25}, {"value": 1.0}]})
    head = entry("head.weight")
    models = [model(label, same(), head) for label in ("base", "one", "two")]
    first, copy = planner(recipe, *models, copies={head.name: NAME}).plan_all()
    assert copy.values == first.values
    assert (copy.is_copy, copy.parameter) == (True, NAME)
    assert copy.why == f"one parameter with {NAME}"


def test_options_that_the_method_refuses_are_told_once() -> None:
    recipe = recipe_of("linear", base=False, parameters={"weight": 0.0})
    models = [model(label, entry("a"), entry("b")) for label in ("one", "two")]
    refused = planner(recipe, *models)
    assert refused.plan_all() == []
    (problem,) = problems(refused)
    assert "a, b" in problem


# --- an adapter's update --------------------------------------------------------------------------


def test_an_adapter_on_the_base_gives_its_update_without_values() -> None:
    base = model("base", same())
    one = model("one", *base.tensors.values(), parts={NAME: low_rank(rank=3)})
    plan = planned(planner(recipe_of(), base, one, model("two", *base.tensors.values(), parts={})))
    changed, unchanged = plan.inputs
    assert (changed.patch, changed.relative, changed.rank) == (True, True, 3)
    assert (unchanged.patch, unchanged.relative) == (False, True)
    assert plan.read == (plan.origin,)


def test_an_adapter_on_another_model_is_no_update_of_the_base() -> None:
    one = model("one", same(), parts={NAME: low_rank()})
    plan = planned(planner(recipe_of(), model("base", same()), one, model("two", same())))
    assert (plan.inputs[0].patch, plan.inputs[0].relative) == (True, False)


def test_an_update_of_a_base_with_an_adapter_is_not_known_without_values() -> None:
    base = model("base", same(), parts={NAME: low_rank()})
    one = model("one", *base.tensors.values(), parts={NAME: low_rank()})
    plan = planned(planner(recipe_of(), base, one, model("two", same())))
    assert not plan.inputs[0].relative
    assert plan.origin is not None
    assert plan.origin.patch


# --- missing --------------------------------------------------------------------------------------


def test_a_tensor_that_a_model_lacks_is_refused() -> None:
    missing = of_tensors(recipe_of(), same(), same(), None)
    assert missing.plan_all() == []
    (problem,) = problems(missing)
    assert problem.startswith(f"two: tensors are missing: {NAME}")


def test_a_rule_lets_the_base_stand_in() -> None:
    plan = planned(of_tensors(recipe_of(rules={"missing": "base"}), same(), same(), None))
    assert plan.inputs[1].model == 0
    assert plan.why == "two: missing, read from the base"


def test_what_a_model_rightly_lacks_needs_no_rule() -> None:
    lacks = ({}, {}, {NAME: "of a part that it lacks"})
    plan = planned(of_tensors(recipe_of(), same(), same(), None, lacks=lacks))
    assert plan.why == "two: missing, read from the base (of a part that it lacks)"


def test_a_task_of_a_gate_may_lack_what_it_has_no_use_for() -> None:
    pooler = entry("pooler.dense.weight")
    recipe = recipe_of("mass", parameters={})
    base, one = (model(label, same(), pooler) for label in ("base", "one"))
    tensors = planner(recipe, base, one, model("two", same())).plan_all()
    assert [plan.inputs[1].model for plan in tensors] == [2, 0]
    refused = planner(recipe, base, one, model("two", pooler))  # it has no layers: it is no such model
    assert len(refused.plan_all()) == 1
    assert len(problems(refused)) == 1


# --- of another type or shape ---------------------------------------------------------------------


def test_an_integer_tensor_is_copied_and_compared() -> None:
    other_shape, integers = same(TALL, "I64"), same(dtype="I64")
    plan = planned(of_tensors(recipe_of(dtype="bfloat16"), integers, integers, other_shape))
    assert (plan.action, plan.treatment, plan.dtype) == ("copy", "keep", "I64")
    assert [member.model for member in plan.inputs] == [0, 1]
    assert plan.why == "I64 is not averaged: copied from base"


def test_a_float_of_the_base_that_is_an_integer_elsewhere_is_refused() -> None:
    refused = of_tensors(recipe_of(), same(), same(), same(dtype="I8"))
    assert refused.plan_all() == []
    assert problems(refused) == [
        f"two: tensors are I8 here and F32 in base: {NAME} — merge models of one base"
    ]


def test_an_integer_of_the_base_that_is_a_float_elsewhere_is_refused() -> None:
    """A copy of the base's would drop what the model has learned."""
    refused = of_tensors(recipe_of(), same(dtype="I8"), same(dtype="I8"), same())
    assert refused.plan_all() == []
    assert problems(refused) == [
        f"two: tensors are F32 here and I8 in base: {NAME} — merge models of one base"
    ]


@pytest.mark.parametrize("mask", ["U8", "BOOL"])
def test_a_mask_is_the_base_s_whatever_its_type(mask: str) -> None:
    """Versions of transformers have stored GPT-2's causal masks in three types."""
    square = (1, 1, 4, 4)
    floats = planned(of_tensors(recipe_of(), same(square), same(square, mask), same(square)))
    assert (floats.action, floats.dtype, floats.why) == ("take_base", "F32", "a mask in one")
    bits = planned(of_tensors(recipe_of(), same(square, mask), same(square), same(square, mask)))
    assert (bits.action, bits.dtype, [part.model for part in bits.inputs]) == ("copy", mask, [0, 2])


def test_another_shape_is_refused() -> None:
    refused = of_tensors(recipe_of(), same(), same(TALL), same())
    assert refused.plan_all() == []
    (problem,) = problems(refused)
    assert problem.startswith(f"one: shapes differ from base's: {NAME} ([5, 6], there [4, 6])")


def test_a_rule_takes_the_base_where_a_shape_differs() -> None:
    plan = planned(of_tensors(recipe_of(rules={"shape": "base"}), same(), same(TALL), same()))
    assert (plan.action, plan.treatment) == ("take_base", "base")
    assert [member.model for member in plan.inputs] == [0]
    assert plan.why == "rule shape: base, for one has [5, 6] and not [4, 6]"
    assert (plan.method, plan.origin, plan.values) == (None, None, {})


def test_an_adapter_has_no_place_for_a_table_of_another_shape() -> None:
    recipe = recipe_of("cat", output={"as": "adapter"})
    name = "model.embed_tokens.weight"
    plan = planned(of_tensors(recipe, entry(name), entry(name, TALL), entry(name)))
    assert plan.action == "take_base"
    assert plan.why == "it has no place there, and one has [5, 6] for [4, 6]: added tokens are not in it"
    linear_map = of_tensors(recipe, same(), same(TALL), same())
    assert linear_map.plan_all() == []
    assert len(problems(linear_map)) == 1


def test_each_task_of_a_gate_keeps_its_own_shape() -> None:
    plan = planned(of_tensors(recipe_of("mass", parameters={}), same(), same(TALL), same()))
    assert (plan.action, plan.why) == ("take_base", "each task keeps its own, for one has [5, 6]")


def test_a_head_that_a_task_names_is_not_merged() -> None:
    entries = [{"model": "one", "head": "up_proj"}, {"model": "two"}]
    recipe = recipe_of("mass", models=entries, parameters={})
    plan = planned(of_tensors(recipe, same(), same(), same()))
    assert (plan.action, plan.why) == ("take_base", "a head: each task keeps its own")
