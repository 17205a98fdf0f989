"""The language updates of a composed model's specialists, inspected: of adapters, and of a full fine-tune."""

from __future__ import annotations

from pathlib import Path

import pytest

import submerge
from _models import ROOM
from _specialists import make_specialists


def test_it_is_the_language_updates_that_overlap(tmp_path: Path) -> None:
    made = make_specialists(tmp_path)
    made.adapt("vision", "vision-lora", 1)
    made.adapt("hearing", "language", 2, r=3, target_modules=r".*language_model.*q_proj")
    made.tune("hearing", "tuned", 5)
    vision = made.entry("vision", "image", lora="vision-lora")
    hearing = made.entry("hearing", "audio", language_lora="language")
    source = made.recipe("ssam", vision, hearing)
    inspection = submerge.inspect_updates(source, settings=ROOM)
    report = submerge.merge(source, tmp_path / "out", settings=ROOM)
    for matrix in inspection.matrices:
        assert len(matrix.pairs) == ("q_proj" in matrix.name)
        assert matrix.kept.at(matrix.max) == pytest.approx(report.figures[matrix.name]["kept"], abs=1e-5)
    assert {matrix.ranks[1] for matrix in inspection.matrices} == {0, 3}
    full = made.recipe("linear", vision, made.entry("tuned", "audio"), parameters={"weight": 1})
    matrices = submerge.inspect_updates(full, settings=ROOM).matrices
    assert len(matrices) == 14
    assert all(len(matrix.pairs) == (matrix.ranks[0] > 0) for matrix in matrices)
