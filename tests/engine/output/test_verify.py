"""What verify finds in an output that was not changed since."""

import json
from pathlib import Path
from typing import Any

import pytest

import submerge
from _models import ROOM, SMALL, perturbed, state, write
from _tied import EMBEDDING, HEAD, TIED, both, once, recipe


def merged(tmp_path: Path, **more: Any) -> Path:
    write(tmp_path / "base", both(once()), TIED)
    write(tmp_path / "tuned", perturbed(once(), 1), TIED)
    made = recipe(tmp_path / "base", tmp_path / "tuned", merge_method="task_arithmetic", parameters={})
    return submerge.merge({**made, **more}, tmp_path / "out", settings=ROOM).out


def test_verify_finds_copies_that_the_config_ties(tmp_path: Path) -> None:
    base = state()
    write(tmp_path / "base", base)
    write(tmp_path / "tuned", perturbed(base, 1))
    out = submerge.merge(recipe(tmp_path / "base", tmp_path / "tuned"), tmp_path / "out", settings=ROOM).out
    assert submerge.verify(out, load=False).sound
    (out / "config.json").write_text(json.dumps(TIED))
    problems = submerge.verify(out, load=False).problems
    assert len(problems) == 1
    assert EMBEDDING in problems[0] and HEAD in problems[0] and "ties them" in problems[0]  # noqa: PT018


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_verify_finds_a_merge_that_changed_nothing(dtype: str | None, tmp_path: Path) -> None:
    none = [{"model": str(tmp_path / "tuned"), "parameters": {"weight": 0.0}}]
    out = merged(tmp_path, models=none, **({"dtype": dtype} if dtype else {}))
    problems = submerge.verify(out, load=False).problems
    assert len(problems) == 1
    assert "nothing changed" in problems[0]
    assert str(tmp_path / "tuned") in problems[0]


def test_verify_accepts_a_merge_of_models_that_equal_the_base(tmp_path: Path) -> None:
    write(tmp_path / "base", once(), TIED)
    write(tmp_path / "tuned", once(), TIED)
    out = submerge.merge(recipe(tmp_path / "base", tmp_path / "tuned"), tmp_path / "out", settings=ROOM).out
    assert submerge.verify(out, load=False).sound
    assert submerge.verify(merged(tmp_path / "other"), load=False).sound


def test_verify_finds_a_model_that_took_no_part(tmp_path: Path) -> None:
    out = merged(tmp_path)
    manifest = json.loads((out / "submerge.json").read_text())
    used = [line.get("used") for line in manifest["models"]]
    assert used == [None, len(SMALL)]
    manifest["models"][1]["used"] = 0
    (out / "submerge.json").write_text(json.dumps(manifest))
    problems = submerge.verify(out, load=False).problems
    assert [p for p in problems if p.startswith(str(tmp_path / "tuned")) and "took no part" in p]


@pytest.mark.parametrize("damage", [None, 3, "x", [], [None], [{"model": 1}], [{"model": "a", "read": 1}]])
def test_verify_reads_a_damaged_list_of_models(damage: Any, tmp_path: Path) -> None:
    out = merged(tmp_path)
    manifest = json.loads((out / "submerge.json").read_text())
    manifest["models"] = damage
    (out / "submerge.json").write_text(json.dumps(manifest))
    submerge.verify(out, load=False)
