"""Recipes of composed models: the keys of specialists, and what cannot be composed."""

from __future__ import annotations

from typing import Any

import pytest

from submerge.errors import RequestError
from submerge.recipe import Recipe, load_recipe, to_mergekit

VISION = {"model": "vision", "modality": "image"}
HEARING = {"model": "hearing", "modality": "audio"}


def composed(**changes: Any) -> Recipe:
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "models": [VISION, HEARING],
        "parameters": {"weight": 0.5},
    }
    return load_recipe({key: value for key, value in (recipe | changes).items() if value is not None})


def test_one_adapter_is_laid_over_the_model() -> None:
    recipe = composed(models=[VISION | {"lora": "adapter"}])
    (entry,) = recipe.models
    assert recipe.composed
    assert (entry.model, entry.modality, entry.decoupled) == ("vision+adapter", "image", False)
    assert recipe.modality_tokens == "own"


@pytest.mark.parametrize(
    ("keys", "model"),
    [
        ({"language_lora": "text", "modality_lora": "sound"}, "hearing+text"),
        ({"language_lora": "text"}, "hearing+text"),
        ({"modality_lora": "sound"}, "hearing"),
    ],
)
def test_two_adapters_are_decoupled(keys: dict[str, str], model: str) -> None:
    (entry,) = composed(models=[HEARING | keys]).models
    assert (entry.model, entry.decoupled) == (model, True)
    assert entry.modality_lora == keys.get("modality_lora", "")


@pytest.mark.parametrize("more", [{}, {"modality_tokens": "merged"}])
def test_what_is_resolved_reads_back(more: dict[str, Any]) -> None:
    adapters = {"language_lora": "text"} if more else {"language_lora": "text", "modality_lora": "sound"}
    models = [VISION | {"lora": "one"}, HEARING | adapters | {"placeholder": "<sound>"}]
    recipe = composed(models=models, **more)
    resolved = recipe.resolved()
    again = load_recipe(resolved)
    assert again.resolved() == resolved
    assert [vars(entry) | {"where": ""} for entry in again.models] == [
        vars(entry) | {"where": ""} for entry in recipe.models
    ]
    assert resolved["models"][1]["model"] == "hearing"
    assert again.modality_tokens == recipe.modality_tokens


def test_other_recipes_say_nothing_of_modalities() -> None:
    recipe = composed(models=[{"model": "a"}, {"model": "b"}])
    assert not recipe.composed
    assert "modality_tokens" not in recipe.resolved()
    assert to_mergekit(recipe) is not None
    assert to_mergekit(composed()) is None


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"models": [VISION, {"model": "other"}]}, r"models\[1\]: other has no modality, and others have one"),
    ({"models": [VISION, HEARING | {"modality": "image"}]}, "2 specialists have the modality 'image'"),
    (
        {"models": [VISION, HEARING | {"modality": "images"}]},
        "the modalities 'image' and 'images' would",
    ),
    (
        {"models": [VISION, HEARING | {"modality": "Image"}]},
        "the modalities 'image' and 'Image' would",
    ),
    ({"models": [VISION, HEARING | {"model": "base"}]}, r"models\[1\]: base is the base"),
    ({"models": [VISION | {"modality": "a.b"}]}, "modality is 'a.b' — a word such as image"),
    ({"models": [VISION | {"modality": "text"}]}, "modality is 'text' — a word such as image"),
    ({"models": [VISION | {"placeholder": 3}]}, "placeholder is 3 — write '<image>'"),
    ({"models": [VISION | {"lora": "a", "modality_lora": "b"}]}, "'lora' is one adapter for all tokens"),
    ({"models": [VISION | {"language_lora": "a+b"}]}, "'a\\+b' is an adapter on a model"),
    ({"models": [VISION | {"model": "a+b", "language_lora": "c"}]}, "more than one adapter on a model"),
    (
        {"models": [{"model": "a", "modality_lora": "b"}]},
        "this entry names no modality — add 'modality: image'",
    ),
    ({"models": [{"model": "a"}], "modality_tokens": "own"}, "no model has a modality"),
    ({"modality_tokens": "both"}, "modality_tokens is 'both' — one of own, merged"),
    (
        {"models": [HEARING | {"modality_lora": "b"}], "modality_tokens": "merged"},
        r"models\[0\].modality_lora: .* — keep one of the two keys",
    ),
    ({"merge_method": "linear", "base_model": None}, "a composed model needs a base_model"),
    ({"merge_method": "mass", "parameters": {}}, "mass has a gate of its own"),
    ({"output": {"as": "adapter"}}, "an adapter has no place for them — write a checkpoint"),
    ({"tokenizer_source": "vision"}, "the base's tokenizer, and the tokens that specialists added"),
    ({"merge_method": "nsc", "parameters": {}}, "nsc learns weights from inputs of one model"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_what_cannot_be_composed_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        composed(**changes)


def test_one_adapter_for_all_tokens_and_one_for_text_are_one_problem() -> None:
    with pytest.raises(RequestError) as caught:
        composed(models=[VISION | {"lora": "a", "language_lora": "b"}])
    (problem,) = caught.value.problems
    assert "'lora' is one adapter for all tokens" in problem.what
