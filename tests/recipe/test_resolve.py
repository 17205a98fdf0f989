import json
import time

import pytest

from submerge.errors import RequestError
from submerge.recipe import load_recipe, resolve

RECIPE = """\
merge_method: updates
base_model: base
models:
  - model: a
    parameters:
      weight:
        - filter: mlp
          value: [0, 0.5, 1]
        - filter: attn
          value: 0.7
  - model: b
    parameters:
      weight: 2
      mode: [fast, slow]
parameters:
  weight:
    - filter: norm
      value: 9
    - value: 3
  layers: [2, 4, 6]
  normalize: [true, false]
"""


@pytest.fixture
def recipe(tmp_path, toys):
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE)
    return load_recipe(file, methods=toys)


def weights(recipe, tensor, depth=0.0):
    return resolve(recipe, tensor, depth).values()["weight"]


def test_own_parameters_then_top_level_then_default(recipe):
    assert weights(recipe, "x.mlp.up", 0.25) == [0.25, 2]
    assert weights(recipe, "x.attn.q", 0.25) == [0.7, 2]
    assert weights(recipe, "x.norm") == [9, 2]
    assert weights(recipe, "head") == [3, 2]
    assert resolve(recipe, "head", 0).values()["density"] == [1.0, 1.0]


def test_the_first_rule_that_matches_holds(recipe):
    assert weights(recipe, "attn.mlp.norm", 1.0) == [1, 2]


def test_gradients(recipe):
    at = {depth: resolve(recipe, "head", depth).values() for depth in (0.0, 0.25, 0.5, 0.75, 1.0)}
    assert [at[depth]["layers"][0] for depth in at] == [2, 3, 4, 5, 6]
    assert all(type(at[depth]["layers"][0]) is int for depth in at)
    assert [at[depth]["normalize"] for depth in at] == [True, True, True, True, False]
    assert [at[depth]["mode"][1] for depth in at] == ["fast", "fast", "fast", "fast", "slow"]


def test_a_whole_number_is_not_interpolated_to_a_half(recipe):
    with pytest.raises(
        RequestError, match=r"layers must be a whole number, not 2\.4\d*, by .* for tensor head"
    ):
        resolve(recipe, "head", 0.1)


def test_rounding_does_not_leave_the_range(toys):
    source = {"merge_method": "updates", "base_model": "x", "models": [{"model": "a"}]}
    source["parameters"] = {"weight": 1, "density": [1, 1, 1, 1]}
    recipe = load_recipe(source, methods=toys)
    assert {resolve(recipe, "t", i / 997).values()["density"][0] for i in range(998)} == {1.0}


def test_why(recipe):
    found = resolve(recipe, "x.mlp.up", 0.25)
    assert found["weight"][0].why == (
        "models[0].parameters.weight (recipe.yaml:8), filter 'mlp', gradient [0, 0.5, 1] at depth 0.250"
    )
    assert found["weight"][1].why == "models[1].parameters.weight (recipe.yaml:13)"
    assert found["normalize"].why == (
        "parameters.normalize (recipe.yaml:21), gradient [true, false] at depth 0.250"
    )
    assert found["lambda"].why == "default"
    assert resolve(recipe, "norm", 0)["weight"][0].why == "parameters.weight (recipe.yaml:18), filter 'norm'"


def test_why_of_a_mapping(toys):
    source = {"merge_method": "zero", "models": [{"model": "a"}], "parameters": {"weight": [{"value": 1}]}}
    assert resolve(load_recipe(source, methods=toys), "t", 0)["weight"][0].why == "parameters.weight"


def test_an_option_without_a_value_is_told_with_tensor_and_model(toys):
    text = (
        "merge_method: zero\nmodels:\n  - model: a\n    parameters: {weight: {filter: mlp, value: 1}}\n"
        "  - model: b\n    parameters: {weight: {filter: attn, value: 1}}\n"
    )
    recipe = load_recipe(text, methods=toys)
    with pytest.raises(RequestError) as caught:
        resolve(recipe, "x.norm", 0)
    assert [str(problem) for problem in caught.value.problems] == [
        "recipe:3: no value of 'weight' for tensor x.norm of model a — add a rule without a filter",
        "recipe:5: no value of 'weight' for tensor x.norm of model b — add a rule without a filter",
    ]


def test_a_shared_option_without_a_value(toys):
    text = "merge_method: must\nbase_model: x\nmodels: [{model: a}]\nparameters: {t: {filter: q, value: 1}}\n"
    with pytest.raises(RequestError, match="no value of 't' for tensor k — add a rule"):
        resolve(load_recipe(text, methods=toys), "k", 0)


def test_depth_lies_in_the_model(recipe):
    for depth in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="depth"):
            resolve(recipe, "t", depth)


def test_values_are_the_callers_own(recipe):
    resolve(recipe, "t", 0).values()["weight"].append(1)
    assert resolve(recipe, "t", 0).values()["weight"] == [3, 2]


def test_the_same_model_twice_keeps_its_own_parameters(toys):
    models = [{"model": "a", "parameters": {"weight": weight}} for weight in (1, 2)]
    recipe = load_recipe({"merge_method": "zero", "models": models}, methods=toys)
    assert weights(recipe, "t") == [1, 2]


def test_the_resolved_recipe_resolves_alike(recipe, toys):
    again = load_recipe(json.loads(json.dumps(recipe.resolved())), methods=toys)
    for tensor in ("mlp", "attn", "norm", "head"):
        assert resolve(again, tensor, 0.5).values() == resolve(recipe, tensor, 0.5).values()


def test_a_large_model_takes_no_time(toys):
    rules = [{"filter": f, "value": [0, 1, 0.5]} for f in ("q_proj", "mlp", "k_proj")] + [{"value": 0.5}]
    models = [{"model": f"m{i}", "parameters": {"weight": rules, "density": rules}} for i in range(10)]
    recipe = load_recipe({"merge_method": "updates", "base_model": "b", "models": models}, methods=toys)
    names = [f"model.layers.{i // 600}.mlp.experts.{i % 600}.up_proj.weight" for i in range(36_000)]
    start = time.perf_counter()
    for i, name in enumerate(names):
        resolve(recipe, name, (i // 600) / 59)
    assert time.perf_counter() - start < 5  # about 0.5 s; the bound is for slow machines
