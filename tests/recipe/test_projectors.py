"""Recipes whose projectors are mixed: the keys, and what cannot be mixed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from submerge.errors import RequestError
from submerge.recipe import ProjectorMix, Recipe, TaskFolder, load_recipe, to_mergekit

DATA = {"data": "org/data"}
MODELS = [{"model": "one", **DATA}, {"model": "two", "name": "second", **DATA}]
DEFAULTS = {"temperature": 0.03, "pooling": "mean", "centred": True, "key": "image", "prototypes": 1}


def recipe_of(**changes: Any) -> Recipe:
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "models": MODELS,
        "projectors": "mixed",
        "parameters": {"weight": 0.5},
    }
    return load_recipe({key: value for key, value in (recipe | changes).items() if value is not None})


def test_projectors_are_mixed_by_prototypes() -> None:
    recipe = recipe_of()
    assert isinstance(recipe.projectors, ProjectorMix)
    assert recipe.projectors.settings("projector").to_mapping() == {
        "module": "projector",
        **{name: value for name, value in DEFAULTS.items() if name != "prototypes"},
        "top": None,
    }
    assert recipe.makes_prototypes
    assert to_mergekit(recipe) is None


def test_settings_are_a_mapping() -> None:
    mix = {"mix": "prototypes", "temperature": 0.5, "top": 2, "prototypes": 3}
    recipe = recipe_of(projectors=mix)
    assert isinstance(recipe.projectors, ProjectorMix)
    assert recipe.projectors.prototypes == 3
    chosen_by_the_images = {"key"}
    wanted = {name: value for name, value in DEFAULTS.items() if name not in chosen_by_the_images}
    assert recipe.resolved()["projectors"] == wanted | mix


@pytest.mark.parametrize("projectors", ["mixed", "merged", None, {"pooling": "position"}])
def test_what_is_resolved_reads_back(projectors: Any) -> None:
    models = MODELS if projectors not in ("merged", None) else [{"model": "one"}, {"model": "two"}]
    resolved = recipe_of(projectors=projectors, models=models).resolved()
    assert load_recipe(resolved).resolved() == resolved
    assert ("projectors" in resolved) == (projectors is not None)


def test_a_folder_of_prototypes_needs_no_data() -> None:
    models = [{"model": "one"}, {"model": "two"}]
    recipe = recipe_of(models=models, prototypes="out.prototypes", projectors=None)
    assert isinstance(recipe.projectors, ProjectorMix)
    assert not recipe.makes_prototypes
    assert recipe.prototypes == TaskFolder(Path("out.prototypes"), "out.prototypes")
    assert recipe.prototype_files == tuple(
        Path(f"out.prototypes/{name}.safetensors") for name in ("one", "two")
    )
    assert load_recipe(recipe.resolved()).resolved() == recipe.resolved()


def test_a_task_can_share_the_projector_of_another() -> None:
    recipe = recipe_of(models=[MODELS[0], {**MODELS[1], "share_projector": "one"}], projectors=None)
    assert isinstance(recipe.projectors, ProjectorMix)
    assert [entry.share_projector for entry in recipe.models] == ["", "one"]
    assert load_recipe(recipe.resolved()).resolved() == recipe.resolved()


def test_the_base_among_the_models_is_no_task() -> None:
    recipe = recipe_of(
        merge_method="linear", models=[{"model": "base/"}, *MODELS], parameters={"weight": 1.0}
    )
    assert [entry.adapter_name for entry in recipe.tasks] == ["one", "second"]


def test_data_is_for_moments_and_for_prototypes() -> None:
    given = recipe_of(merge_method="many", moments="out.moments")
    assert not given.collects_moments
    assert given.makes_prototypes
    assert recipe_of(merge_method="many", parameters={"statistics": "identity"}).makes_prototypes
    weights = recipe_of(merge_method="nsc", parameters={"weight": 0.5})
    assert not weights.calibrates


PROBLEMS: dict[str, tuple[dict[str, Any], str]] = {
    "a word": ({"projectors": "blended"}, "projectors is 'blended'"),
    "mix": ({"projectors": {"mix": "router"}}, "mix is 'router'"),
    "a setting": ({"projectors": {"temprature": 1}}, "unknown settings of projectors: temprature"),
    "a value": ({"projectors": {"pooling": "max"}}, "pooling is 'max'"),
    "the module": ({"projectors": {"module": "projector"}}, "unknown key 'module'"),
    "no prototypes": ({"projectors": {"prototypes": 0}}, "prototypes is 0"),
    "a list": ({"prototypes": ["out"]}, "prototypes are in a folder"),
    "no data": ({"models": [MODELS[0], {"model": "two"}]}, "two has no data to make prototypes from"),
    "one model": ({"models": MODELS[:1]}, "projectors of several models are mixed, and there is one"),
    "one name": (
        {"models": [MODELS[0], MODELS[0] | {"model": "a/one"}]},
        "several models would be",
    ),
    "no name of a file": ({"models": [MODELS[0], MODELS[1] | {"name": "a/b"}]}, "a/b can be no"),
    "nobody": (
        {"models": [MODELS[0], MODELS[1] | {"share_projector": "three"}]},
        "names 'three'",
    ),
    "itself": ({"models": [MODELS[0], MODELS[1] | {"share_projector": "second"}]}, "which is no other model"),
    "a number": ({"models": [MODELS[0], MODELS[1] | {"share_projector": 1}]}, "share_projector is 1"),
    "an adapter": ({"output": {"as": "adapter"}}, "an adapter has no place for them"),
    "a gate": ({"merge_method": "mass"}, "mass has a gate of its own"),
    "no base": ({"base_model": None, "merge_method": "linear", "parameters": {"weight": 1}}, "there is none"),
    "modalities": (
        {"models": [entry | {"modality": f"m{k}"} for k, entry in enumerate(MODELS)]},
        "a composed model keeps each specialist's projector",
    ),
    "merged": ({"projectors": "merged", "models": [{"model": "one"}], "prototypes": "p"}, "merged into one"),
}


@pytest.mark.parametrize("case", PROBLEMS)
def test_what_cannot_be_mixed_is_refused(case: str) -> None:
    changes, message = PROBLEMS[case]
    with pytest.raises(RequestError, match=message):
        recipe_of(**changes)


def test_each_problem_is_told_once() -> None:
    models = [MODELS[0], MODELS[0] | {"model": "a/one"}]
    with pytest.raises(RequestError) as caught:
        recipe_of(merge_method="many", models=models)
    assert len(caught.value.problems) == 1


def test_all_settings_that_are_wrong_are_told_and_nothing_else() -> None:
    wrong = {"mix": "means", "prototypes": 0, "temperature": -1, "key": "sound"}
    with pytest.raises(RequestError) as caught:
        recipe_of(projectors=wrong)
    told = [problem.what.partition(" is ")[0] for problem in caught.value.problems]
    assert sorted(told) == sorted(wrong)


def test_merged_projectors_have_no_use_for_data_and_names() -> None:
    with pytest.raises(RequestError, match="task_arithmetic learns nothing from data"):
        recipe_of(projectors="merged")
    with pytest.raises(RequestError, match="is merged with the others"):
        recipe_of(projectors="merged", models=[{"model": "one"}, {"model": "two", "share_projector": "one"}])
