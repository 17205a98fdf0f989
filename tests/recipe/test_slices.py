"""`slices` and `modules`: what is read, where it stands, and what is refused with which line."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from submerge.errors import RequestError
from submerge.methods import Method
from submerge.recipe import load_recipe, resolve, resolve_layers

GOOD = """\
merge_method: zero_base
base_model: org/a
slices:
  - sources:
      - {model: org/a, layer_range: [0, 4]}
      - {model: org/b, lora: org/l, layer_range: [2, 6], parameters: {weight: 3}}
  - base_model: org/b
    sources:
      - {model: org/b, layer_range: [1, 2]}
    parameters: {weight: [{filter: mlp, value: [0, 1]}]}
parameters: {weight: 2}
dtype: bfloat16
"""
MODULES = """\
merge_method: zero
modules:
  text:
    models: [{model: a}, {model: b, parameters: {weight: 1}}]
    parameters: {weight: [{filter: q, value: 5}]}
  image:
    slices: [{sources: [{model: a, layer_range: [0, 1]}]}]
parameters: {weight: 2}
"""


@pytest.mark.parametrize("text", [GOOD, MODULES])
def test_a_recipe_is_read_back_from_what_it_resolves_to(text: str, toys: dict[str, Method]) -> None:
    resolved = load_recipe(text, methods=toys).resolved()
    assert load_recipe(resolved, methods=toys).resolved() == resolved
    assert "models" not in resolved


def test_slices(toys: dict[str, Method]) -> None:
    recipe = load_recipe(GOOD, methods=toys)
    assert [entry.model for entry in recipe.models] == ["org/a", "org/b+org/l", "org/b"]
    assert recipe.participants == recipe.models
    (module,) = recipe.stack
    first, second = module.slices
    assert [(s.entry.model, s.start, s.stop) for s in first.sources] == [
        ("org/a", 0, 4),
        ("org/b+org/l", 2, 6),
    ]
    assert (first.base, second.base) == ("org/a", "org/b")
    plain = recipe.of_slice(first)
    assert (plain.base, plain.stack, plain.dtype) == ("org/a", (), "bfloat16")
    assert resolve(plain, "model.layers.0.mlp", 0).values()["weight"] == [2, 3]


def test_values_by_model_go_by_its_own_names(toys: dict[str, Method]) -> None:
    text = GOOD.replace("weight: 3", "weight: [{filter: layers.2.mlp, value: 7}]")
    recipe = load_recipe(text, methods=toys)
    plain = recipe.of_slice(recipe.stack[0].slices[0])
    names = ["model.layers.0.mlp", "model.layers.2.mlp"]
    assert resolve_layers(plain, "model.layers.0.mlp", 0.5, names).values()["weight"] == [2, 7]
    assert resolve(plain, "model.layers.0.mlp", 0.5).values()["weight"] == [2, 2]


def test_places_stand_behind_one_another(toys: dict[str, Method]) -> None:
    recipe = load_recipe(MODULES, methods=toys)
    text = recipe.of_slice(recipe.stack[0].slices[0])
    assert [resolve(text, name, 0).values()["weight"] for name in ("q", "k")] == [[5, 1], [2, 1]]
    assert resolve(text, "k", 0)["weight"][0].why == "parameters.weight (recipe:8)"  # type: ignore[index]
    assert text.parameters["weight"].written() == [{"filter": "q", "value": 5}, {"value": 2}]
    source = recipe.stack[0].slices[0].sources[0]
    assert (source.start, source.stop) == (0, None)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[0, 4]", "[0, 5]", "recipe:4: the sources of a slice have unlike numbers of layers: 5, 4"),
        ("[0, 4]", "[0.5, 4]", "recipe:5: layer_range is a list of two whole numbers, not a list"),
        ("[0, 4]", "[0, 4, 8]", "recipe:5: layer_range is a list of two whole numbers, not a list"),
        ("[0, 4]", "4", "recipe:5: layer_range is a list of two whole numbers, not 4"),
        ("[0, 4]", "[true, 4]", "recipe:5: layer_range is a list of two whole numbers, not a list"),
        ("[0, 4]", "[4, 0]", "recipe:5: layer_range [4, 0] has no layer"),
        ("[0, 4]", "[-4, 0]", "recipe:5: layer_range [-4, 0] counts from 0 on"),
        (", layer_range: [0, 4]", "", "recipe:5: this source names no layers — add 'layer_range:"),
        ("{model: org/a, layer_range: [0, 4]}", "org/a", "recipe:5: a source is a mapping, not 'org/a'"),
        ("model: org/b, lora: org/l", "model: org/a/", "recipe:4: a slice names org/a more than once"),
        ("lora: org/l", "name: b", "recipe:6: 'name' has no place in a slice — remove the key"),
        ("lora: org/l", "laura: org/l", "recipe:6: unknown key 'laura' — did you mean 'lora'?"),
        ("base_model: org/b", "base: org/b", "recipe:7: unknown key 'base' — did you mean 'base_model'?"),
        (
            "base_model: org/b",
            "residual_weight: 1",
            "recipe:7: 'residual_weight' is not supported — no merge",
        ),
        ("parameters: {weight: 2}\n", "", "recipe:5: org/a lacks the parameter 'weight'"),
        ("dtype", "models: [{model: x}]\ndtype", "recipe:3: both 'models' and 'slices' say what is merged"),
        ("dtype", "moments: here\ndtype", "recipe:12: 'moments' does not go with layers that are stacked"),
        ("dtype", "output: {as: adapter}\ndtype", "recipe:12: layers are stacked into a checkpoint, and an"),
        ("merge_method: zero_base", "merge_method: updates", "recipe:8: updates merges at least 1 model"),
    ],
)
def test_what_is_wrong_with_slices_is_told_with_its_line(
    problems: Callable[..., list[str]], old: str, new: str, message: str
) -> None:
    found = problems(GOOD.replace(old, new, 1))
    assert any(line.startswith(message) for line in found), found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modules: [a]", "recipe:2: 'modules' is a mapping, not a list"),
        ("modules: {a: 1}", "recipe:2: a module is a mapping, not 1"),
        ("modules: {a: {}}", "recipe:2: the module 'a' lists nothing"),
        (
            "modules: {a: {models: [{model: x, layer_range: [0, 1]}]}}",
            "recipe:2: 'layer_range' is not supported",
        ),
        (
            "modules: {a: {models: [{model: x}], slices: [1]}}",
            "recipe:2: both 'models' and 'slices' say what",
        ),
        ("modules: {a: {models: [{model: x}], layers: 1}}", "recipe:2: unknown key 'layers' — valid here"),
        ("slices: 3", "recipe:2: 'slices' is a list, not 3"),
        ("slices: [a]", "recipe:2: a slice is a mapping, not 'a'"),
        ("slices: [{sources: a}]", "recipe:2: 'sources' is a list, not 'a'"),
        ("slices: [{sources: []}]", "recipe:2: a slice without sources"),
        ("slices: [{}]", "recipe:2: a slice without sources"),
        ("slices: []", "recipe:1: the recipe lists no models"),
    ],
)
def test_what_is_no_slice(problems: Callable[..., list[str]], text: str, message: str) -> None:
    found = problems(f"merge_method: bare\n{text}\n")
    assert any(line.startswith(message) for line in found), found


def test_an_option_of_all_models_is_given_somewhere(
    problems: Callable[..., list[str]], toys: dict[str, Method]
) -> None:
    sources = "[{model: a, layer_range: [0, 1]}, {model: b, layer_range: [0, 1]}]"
    text = f"merge_method: must\nbase_model: a\nslices:\n- sources: {sources}\n"
    hint = "add it to the slice's 'parameters', or to those of the recipe"
    assert problems(text) == [f"recipe:4: must needs the parameter 't' — {hint}"]
    assert load_recipe(text + "  parameters: {t: 1}\n", methods=toys).stack
    assert problems(text.replace("base_model: a\n", "parameters: {t: 1}\n")) == [
        "recipe:4: must needs a base_model — add 'base_model: …', to the recipe or to the slice"
    ]


def test_each_problem_of_a_stack_has_a_hint_of_its_own() -> None:
    text = "merge_method: mass\nbase_model: a\nslices: [{sources: [{model: b, layer_range: [0, 2]}]}]\n"
    with pytest.raises(RequestError) as caught:
        load_recipe(text + "output: {as: adapter}\n")
    hints = {problem.where: problem.hint for problem in caught.value.problems}
    assert hints["recipe:1"] == "list the models under 'models', and stack the layers of the result"
    assert hints["recipe:4"] == "an adapter has the layers of its base: list the models under 'models'"
