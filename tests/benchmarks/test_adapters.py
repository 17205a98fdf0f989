"""The benchmark of methods on singular vectors runs, and its plain routes agree with the methods."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("psutil")
pytest.importorskip("matplotlib")

from benchmarks.adapters import __main__ as benchmark
from benchmarks.adapters import plain
from benchmarks.adapters.models import SIZES, decaying, modules


@pytest.mark.slow
@pytest.mark.usefixtures("one_process")
def test_it_runs_and_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["adapters", "--size", "tiny", "--methods", "ssam,iso_c", "--spectra", "decaying"]
    monkeypatch.setattr(sys, "argv", [*command, "--work", str(tmp_path / "work"), "--out", str(tmp_path)])
    assert benchmark.main() == 0
    adapters = json.loads((tmp_path / "adapters.json").read_text())
    assert list(adapters["merges"]) == ["ssam", "iso_c"]
    assert list(adapters["matrices"]) == ["64x64", "176x64"]
    checkpoints = json.loads((tmp_path / "adapters-checkpoints.json").read_text())
    for entry in checkpoints["spectra"]["decaying"]["matrices"].values():
        for merge in entry["merges"].values():
            assert merge["error_of_weight"] <= 1e-5
    specialists = json.loads((tmp_path / "adapters-specialists.json").read_text())
    assert (specialists["adapters"], specialists["rank"]) == (3, 16)
    assert specialists["merges"]["ssam"]["cpu_seconds"] > 0
    for name in ("adapters", "adapters-checkpoints", "adapters-specialists"):
        assert "Made by `python -m benchmarks.adapters" in (tmp_path / f"{name}.md").read_text()
    for name in ("adapters", "adapters-checkpoints"):
        assert (tmp_path / f"{name}.png").stat().st_size


def test_a_seven_billion_model_has_its_modules() -> None:
    found = modules(SIZES["7b"])
    assert len(found) == 224
    assert set(found.values()) == {(4096, 4096), (11008, 4096), (4096, 11008)}


def test_steps_that_take_too_long_are_left_out() -> None:
    assert plain.seconds("eigh 11008", {}) is None
    assert plain.routes(8, 6, 4)["tsv_m"] == {"svd 8x6": 4, "svd 8x4": 1, "svd 6x4": 1}


def test_decaying_updates_are_as_large_as_flat_ones() -> None:
    assert decaying((64, 32), 0).std().item() == pytest.approx(0.0004, rel=0.1)
