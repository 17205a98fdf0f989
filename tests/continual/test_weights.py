"""Weights of tasks at export: the same as those of the models of a recipe, and none in a sum."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import submerge
from _adapters import same_state
from _models import ROOM
from continual.conftest import Tasks
from continual.test_continual import exported, grown, products
from submerge.errors import RequestError
from submerge.store import MANIFEST

NAMES = ("law", "chess", "poems")
WEIGHTS = {"law": 0.5, "poems": 3.0}


@pytest.fixture
def state(made: Tasks, tmp_path: Path) -> submerge.Continual:
    return grown(made, tmp_path / "state", *NAMES)


@pytest.mark.parametrize(
    "options",
    [
        {"statistics": "identity"},
        {"ridge": 0.1},
        {"ridge": 0.1, "missing": "zero", "scale": 1.4},
        {"ridge": 0.1, "forget": 0.5},
        {"ridge": 0.1, "normalize": "sum", "offdiag": 0.9},
    ],
)
def test_a_weight_is_that_of_a_recipe(made: Tasks, tmp_path: Path, options: dict[str, Any]) -> None:
    models = []
    for name in NAMES:
        _, model, data = made.of(name)
        weight = {"parameters": {"weight": WEIGHTS[name]}} if name in WEIGHTS else {}
        inputs = {} if "statistics" in options else {"data": data}
        models.append({"model": model, **inputs, **weight})
    parameters = {"missing": "skip", **options}
    recipe = {"merge_method": "many", "base_model": made.base, "models": models, "parameters": parameters}
    submerge.merge(recipe, tmp_path / "merged", settings=ROOM)
    grown(made, tmp_path / "state", *NAMES, **options).export(
        tmp_path / "out", form="checkpoint", weights=WEIGHTS, settings=ROOM
    )
    base, wanted, found = (
        load_file(folder / "model.safetensors")
        for folder in (Path(made.base), tmp_path / "merged", tmp_path / "out")
    )
    maps = [name for name in base if "_proj" in name]
    tolerance = 1e-6 if "statistics" in options else 1e-4  # moments of a recipe are of float32
    same_state({n: found[n] - base[n] for n in maps}, {n: wanted[n] - base[n] for n in maps}, tolerance)


def test_the_weight_one_changes_no_byte(state: submerge.Continual, tmp_path: Path) -> None:
    plain = exported(state, tmp_path / "a")
    assert exported(state, tmp_path / "b", weights={"law": 1, "chess": 1.0}) == plain
    assert not (tmp_path / "b" / MANIFEST).exists()
    same = products(state.export(tmp_path / "c", weights=dict.fromkeys(NAMES, 2.0)).out)
    same_state(same, products(tmp_path / "a"), 1e-6)


def test_a_task_of_no_weight_has_no_say(made: Tasks, state: submerge.Continual, tmp_path: Path) -> None:
    found = products(state.export(tmp_path / "a", weights={"law": 0}).out)
    state.remove("law")
    same_state(found, products(state.export(tmp_path / "b").out), 1e-12)


def test_what_is_written_tells_the_weights(state: submerge.Continual, tmp_path: Path) -> None:
    for form in ("adapter", "checkpoint"):
        report = state.export(tmp_path / form, form=form, weights=WEIGHTS, scale=1.4, settings=ROOM)
        assert report.weights == WEIGHTS
        recipe = json.loads((report.out / MANIFEST).read_text())["recipe"]
        assert recipe["models"] == [
            {"model": "chess"},
            {"model": "law", "parameters": {"weight": 0.5}},
            {"model": "poems", "parameters": {"weight": 3.0}},
        ]
        assert recipe["parameters"]["scale"] == 1.4
        assert "* `law`, weight 0.5\n" in (report.out / "README.md").read_text()


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ({"laws": 0.5}, "there is no task 'laws'"),
        ({"law": -1}, "the weight of 'law' is -1"),
        ({"law": float("nan")}, "the weight of 'law' is nan"),
        ({"law": "much"}, "the weight of 'law' is 'much'"),
        (dict.fromkeys(NAMES, 0), "all weights are 0"),
    ],
)
def test_what_is_no_weight(
    state: submerge.Continual, tmp_path: Path, weights: dict[str, Any], told: str
) -> None:
    with pytest.raises(RequestError, match=told):
        state.export(tmp_path / "out", weights=weights)
    assert not (tmp_path / "out").exists()


def test_a_sum_takes_no_weights(made: Tasks, tmp_path: Path) -> None:
    state = grown(made, tmp_path / "sums", "law", "poems", keep="none")
    with pytest.raises(RequestError, match="weights need each task's own moments"):
        state.export(tmp_path / "out", weights={"law": 0.5})
    assert state.export(tmp_path / "out", weights={"law": 1.0}).weights == {}
