"""Adapters that are extracted from fine-tunes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import submerge
from _adapters import CLOSE, Tuned, make_tuned, same_state
from _models import ROOM, write


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_what_was_extracted_loads_and_is_as_near_as_told(
    kind: str, dtype: str | None, tmp_path: Path
) -> None:
    made = make_tuned(tmp_path, kind)
    draw = torch.Generator().manual_seed(5)
    matrices = {
        name
        for name, tensor in made.state.items()
        if tensor.ndim == 2 and not any(part in name for part in ("embed", "lm_head", "wte", "wpe"))
    }
    tuned = {
        name: tensor + 0.1 * torch.randn(tensor.shape, generator=draw) * (name in matrices)
        for name, tensor in made.state.items()
    }
    write(tmp_path / "tuned", tuned, {"model_type": kind})
    report = submerge.extract_lora(
        str(tmp_path / "tuned"), tmp_path / "out", base=str(made.base), rank=5, dtype=dtype, settings=ROOM
    )
    folded = made.loaded(tmp_path / "out")
    assert set(report.figures) >= matrices
    assert not report.warnings
    for name in matrices:
        update = (tuned[name] - made.state[name]).double()
        error = float(((folded[name] - made.state[name]).double() - update).norm() / update.norm())
        assert report.figures[name]["error"] == pytest.approx(error, rel=1e-3)
        assert report.figures[name]["rank"] == 5
        singular = torch.linalg.svdvals(update)
        best = float(singular[5:].norm() / singular.norm())
        assert error == pytest.approx(best, rel=1e-3 if dtype is None else 0.05)
    same_state(
        {n: folded[n] for n in made.state if n not in matrices},
        {n: made.state[n] for n in made.state if n not in matrices},
        0,
    )


def test_a_rank_that_is_enough_is_exact(two: Tuned, full: list[Path], tmp_path: Path) -> None:
    for rank in (4, 16):
        report = submerge.extract_lora(
            str(full[0]), tmp_path / f"{rank}", base=str(two.base), rank=rank, settings=ROOM
        )
        errors = [figures["error"] for figures in report.figures.values() if figures.get("rank")]
        assert len(errors) == 6
        assert max(errors) < 1e-6
        same_state(two.loaded(tmp_path / f"{rank}"), two.merged[0], CLOSE)
        assert not report.warnings


@pytest.mark.parametrize("energy", [0.3, 0.9, 0.999])
def test_energy_asks_for_the_smallest_rank(
    energy: float, two: Tuned, full: list[Path], tmp_path: Path
) -> None:
    report = submerge.extract_lora(
        str(full[0]), tmp_path / "out", base=str(two.base), energy=energy, settings=ROOM
    )
    for name, figures in report.figures.items():
        if not figures.get("rank"):
            continue
        squares = torch.linalg.svdvals((two.merged[0][name] - two.state[name]).double()).square()
        shares = squares.cumsum(0) / squares.sum()
        assert figures["rank"] == int((shares < energy).sum()) + 1
        assert figures["kept_by_rank"] >= energy
        assert figures["error"] == pytest.approx(math.sqrt(1 - figures["kept_by_rank"]), abs=1e-5)
    capped = submerge.extract_lora(
        str(full[0]), tmp_path / "cap", base=str(two.base), energy=energy, rank=1, settings=ROOM
    )
    assert {figures["rank"] for figures in capped.figures.values() if figures.get("rank")} == {1}


def test_only_what_differs_and_is_left_out_is_warned_about(two: Tuned, tmp_path: Path) -> None:
    tuned = dict(two.merged[0])
    tuned["model.norm.weight"] = tuned["model.norm.weight"] + 1
    tuned["model.embed_tokens.weight"] = tuned["model.embed_tokens.weight"] * 1.5
    write(tmp_path / "tuned", tuned, {"model_type": "llama"})
    report = submerge.extract_lora(
        str(tmp_path / "tuned"), tmp_path / "out", base=str(two.base), rank=4, settings=ROOM
    )
    (line,) = report.warnings
    assert line.startswith("2 tensors differ")
    assert "model.norm.weight" in line
    assert "model.embed_tokens.weight" in line
    assert report.figures["model.norm.weight"]["left_out"] == pytest.approx(4.0, rel=1e-5)
