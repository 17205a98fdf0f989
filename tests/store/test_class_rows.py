"""Classifiers whose classes have another order, or other names, than the base's."""

from pathlib import Path
from typing import Any

import pytest
import torch

import submerge
from _models import ROOM, read, state, write
from submerge.store import class_names

HEAD = {"encoder.layer.0.dense.weight": (3, 8), "classifier.weight": (3, 8), "classifier.bias": (3,)}
NAMES = ("negative", "neutral", "positive")


def config(names: tuple[str, ...] | dict[str, str]) -> dict[str, Any]:
    table = names if isinstance(names, dict) else {str(i): name for i, name in enumerate(names)}
    return {"model_type": "toy", "architectures": ["ToyForSequenceClassification"], "id2label": table}


def in_order(tensors: dict[str, torch.Tensor], order: list[int]) -> dict[str, torch.Tensor]:
    return {n: t[order] if n.startswith("classifier") else t for n, t in tensors.items()}


@pytest.mark.parametrize("method", ["linear", "ties", "iso_c"])
def test_rows_of_the_same_classes_are_merged_by_class(method: str, tmp_path: Path) -> None:
    order = [2, 0, 1]
    base, tuned = state(HEAD), state(HEAD, seed=1)
    write(tmp_path / "base", base, config(NAMES))
    write(tmp_path / "plain", tuned, config(NAMES))
    names = tuple(NAMES[i].capitalize() for i in order)
    write(tmp_path / "other", in_order(tuned, order), config(names))
    merged = {}
    for name in ("plain", "other"):
        recipe = {
            "merge_method": method,
            "base_model": str(tmp_path / "base"),
            "models": [{"model": str(tmp_path / name), "parameters": {"weight": 1.0}}],
        }
        report = submerge.merge(recipe, tmp_path / f"{name}-out", settings=ROOM)
        merged[name] = read(report.out)
        told = f"{tmp_path / 'other'}: its classes have another order than those of {tmp_path / 'base'} "
        shown = (
            "(positive, negative, neutral; there negative, neutral, positive); the rows of classifier.bias, "
        )
        assert (f"{told}{shown}classifier.weight are taken by class" in report.warnings) == (name == "other")
        if method == "ties":  # by place, as mergekit merges, it would be another model
            assert (report.out / "mergekit_config.yml").exists() == (name == "plain")
    assert all(torch.equal(merged["plain"][n], t) for n, t in merged["other"].items())
    assert not torch.equal(merged["plain"]["classifier.bias"], base["classifier.bias"])


def test_a_state_of_tasks_tells_of_classes(tmp_path: Path) -> None:
    base, order = state(HEAD), [2, 0, 1]
    tuned = in_order(state(HEAD, seed=1), order)
    write(tmp_path / "base", base, config(NAMES))
    write(tmp_path / "tuned", tuned, config(tuple(NAMES[i] for i in order)))
    write(tmp_path / "pets", tuned, config(("cat", "dog", "fish")))
    tasks = submerge.Continual.begin(tmp_path / "state", str(tmp_path / "base"), statistics="identity")
    warnings = {name: "\n".join(tasks.add(name, str(tmp_path / name))) for name in ("tuned", "pets")}
    assert "classifier.weight are taken by class" in warnings["tuned"]
    assert "classifier.weight are merged by place" in warnings["pets"]


def test_rows_of_other_classes_are_told(tmp_path: Path) -> None:
    write(tmp_path / "base", state(HEAD), config(NAMES))
    write(tmp_path / "pets", state(HEAD, seed=1), config(("cat", "dog", "fish")))
    recipe = {"merge_method": "task_arithmetic", "base_model": str(tmp_path / "base"),
              "models": [{"model": str(tmp_path / "pets")}], "parameters": {"weight": 0.5}}  # fmt: skip
    (warning,) = submerge.plan(recipe).warnings
    told = f"{tmp_path / 'pets'}: its classes are not those of {tmp_path / 'base'} (cat, dog, fish; there "
    rows = "the rows of classifier.bias, classifier.weight are merged by place"
    assert warning == f"{told}negative, neutral, positive), and {rows}"


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"1": "B", "0": " a"}, ("a", "b")),
        ({"0": "LABEL_0", "1": "LABEL_1"}, ()),
        ({"0": "a", "2": "b"}, ()),
        ({"0": "a", "1": "A"}, ()),
        ({"zero": "a"}, ()),
        (["a"], ()),
        (None, ()),
    ],
)
def test_names_that_are_none(told: Any, expected: tuple[str, ...]) -> None:
    assert class_names({"id2label": told}) == expected
    assert class_names(None) == ()


@pytest.mark.parametrize(
    ("name", "is_head"),
    [
        ("classifier.1", True),
        ("score", True),
        ("classification_head.out_proj", True),
        ("classifier.linear_out", True),
        ("encoder.layers.0.fc", False),
        ("bert.pooler.dense", False),
        ("blocks.0.score", False),
    ],
)
def test_heads_are_known_by_their_names(name: str, is_head: bool, tmp_path: Path) -> None:
    for folder, names in (("base", NAMES), ("own", NAMES[::-1])):
        write(tmp_path / folder, state({f"{name}.weight": (3, 4), "model.norm.weight": (4,)}), config(names))
    recipe = {"merge_method": "ties", "base_model": str(tmp_path / "base"),
              "models": [{"model": str(tmp_path / "own")}], "parameters": {"weight": 0.5}}  # fmt: skip
    assert bool(submerge.plan(recipe).warnings) == is_head
