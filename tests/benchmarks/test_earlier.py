"""Reports that keep the seeds of earlier ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("psutil")

from benchmarks.replication import __main__ as command
from benchmarks.replication.earlier import with_earlier

from benchmarks import page

THERE = {"command": "there", "date": "2026-01-01", "machine": {"cpu": "one"}}
HERE = {"command": "here", "date": "2026-02-02", "machine": {"cpu": "other"}}
SUITE = {"name": "some", "tasks": ("a", "b")}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "report.json"


def _write(file: Path, **report: Any) -> None:
    file.write_text(json.dumps({**THERE, "suite": SUITE, **report}))


def _report(**found: Any) -> dict[str, Any]:
    return {**HERE, "suite": SUITE, **found}


def test_nothing_is_kept_where_there_was_nothing(file: Path) -> None:
    results = with_earlier(file, _report(seeds={"1": {"row": 1}}))
    assert results["seeds"] == {"1": {"row": 1}}
    assert results["made"] == {"seed 1": HERE}


def test_seeds_are_kept_whole_and_ours_come_first(file: Path) -> None:
    _write(file, seeds={"10": "c", "0": {"row": 0, "other": 0}, "1": {"row": 7, "other": 7}})
    results = with_earlier(file, _report(seeds={"1": {"row": 1}}))
    assert results["seeds"] == {"0": {"row": 0, "other": 0}, "1": {"row": 1}, "10": "c"}
    assert list(results["seeds"]) == ["0", "1", "10"]
    assert results["made"] == {"seed 0": THERE, "seed 1": HERE, "seed 10": THERE}


def test_a_kept_seed_says_when_it_was_measured_however_often_it_is_kept(file: Path) -> None:
    first = {**THERE, "date": "2025-12-31"}
    _write(file, seeds={"0": "a", "1": "b"}, made={"seed 0": first, "seed 1": THERE})
    results = with_earlier(file, _report(seeds={"2": "c"}))
    assert results["made"] == {"seed 0": first, "seed 1": THERE, "seed 2": HERE}


@pytest.mark.parametrize("key", ["kinds", "ways"])
def test_groups_are_completed_each(file: Path, key: str) -> None:
    _write(file, **{key: {"full": {"0": "a"}, "lora": {"0": "b"}}})
    results = with_earlier(file, _report(**{key: {"lora": {"1": "c"}}}))
    assert results[key] == {"full": {"0": "a"}, "lora": {"0": "b", "1": "c"}}
    assert results["made"] == {"full, seed 0": THERE, "lora, seed 0": THERE, "lora, seed 1": HERE}


def test_what_belongs_to_no_seed_is_completed(file: Path) -> None:
    _write(file, kinds={"lora": {"0": "a"}}, observed={"x": 1, "y": 2})
    results = with_earlier(file, _report(kinds={}, observed={"y": 3}), "observed")
    assert results["observed"] == {"x": 1, "y": 3}
    assert results["kinds"] == {"lora": {"0": "a"}}


def test_other_settings_are_not_mixed(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _write(file, seeds={"0": "a"}, suite={**SUITE, "tasks": ["a"]})
    assert with_earlier(file, _report(seeds={"1": "b"}))["seeds"] == {"1": "b"}
    assert "other settings" in capsys.readouterr().err


def test_a_page_says_which_seeds_are_of_another_day() -> None:
    about = {"cores": 2, "memory_gb": 1, "system": "s", "python": "3", "versions": {}}
    machine = about | {"cpu": "other"}
    made = {"seed 0": THERE, "seed 1": {**HERE, "machine": machine}}
    lines = page.made_by({**HERE, "machine": machine, "made": made})
    told = [line for line in lines if "earlier" in line]
    assert told == ["Measured earlier, each with models of its own: seed 0 on 2026-01-01 (one)."]


def test_a_row_that_some_seeds_lack_says_so() -> None:
    seeds = {"0": {}, "1": {}}
    assert page.named("ties", [{}, {}], seeds) == "ties"
    assert page.named("ties", [{}], seeds) == "ties (1 of 2 seeds)"


@pytest.mark.parametrize(
    ("asked", "seeds"),
    [
        ((), range(3)),
        (("--seeds", "1"), range(1)),
        (("--first-seed", "1"), range(1, 3)),
        (("--first-seed", "2", "--seeds", "1"), range(2, 3)),
        (("--first-seed", "5"), range(5, 6)),
    ],
)
def test_seeds_begin_where_they_should(asked: tuple[str, ...], seeds: range) -> None:
    assert command._options(["train", "text-8", *asked]).seeds == seeds


@pytest.mark.parametrize(
    "asked",
    [
        ("text-8", "--seeds", "0"),
        ("text-8", "--seeds", "-1"),
        ("text-8", "--first-seed", "-1"),
        ("continual-6", "--first-seed", "3"),
        ("continual-6", "--seeds", "4"),
    ],
)
def test_seeds_that_there_are_not_are_refused(
    asked: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command._options(["train", *asked])
    assert "seed" in capsys.readouterr().err
