"""Adapters that are extracted from fine-tunes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import submerge
from _adapters import CLOSE, Tuned, make_tuned, same_state
from _models import ROOM, VISION, quiet_transformers, write
from store.helpers_adapter import MODELS, copied


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


def saved(root: Path, model: Any, seed: int) -> None:
    """Save a model of transformers, and the same with another value in each matrix, as `base` and `tuned`."""
    model.save_pretrained(root / "base")
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "embed" not in name and "lm_head" not in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    model.save_pretrained(root / "tuned")


def extracted(root: Path, model: Any) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Return the tensors of the base with the adapter that was extracted, and the warnings."""
    import peft

    saved(root, model, 5)
    report = submerge.extract_lora(
        str(root / "tuned"), root / "out", base=str(root / "base"), rank=16, settings=ROOM
    )
    base = type(model).from_pretrained(root / "base")
    return copied(peft.PeftModel.from_pretrained(base, str(root / "out")).merge_and_unload()), report.warnings


def test_routers_are_parameters_of_other_modules(tmp_path: Path) -> None:
    """PEFT takes none of transformers' routers for a linear map, and refused the adapter."""
    model = MODELS["gpt-oss"](quiet_transformers())
    found, warnings = extracted(tmp_path, model)
    router = "model.layers.0.mlp.router.weight"
    same_state({router: found[router]}, {router: copied(model)[router]}, CLOSE)
    assert router in json.loads((tmp_path / "out/adapter_config.json").read_text())["target_parameters"]
    assert not any("router.weight" in warning for warning in warnings)


def test_maps_that_others_read_are_left_out(tmp_path: Path) -> None:
    """torch's attention never calls its `out_proj`: factors there would load, and do nothing."""
    transformers = quiet_transformers()
    model = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**VISION))
    found, (warning,) = extracted(tmp_path, model)
    wanted = copied(model)
    assert "head.attention.out_proj.weight" in warning
    for name in ("head.attention.in_proj_weight", "head.mlp.fc1.weight"):
        same_state({name: found[name]}, {name: wanted[name]}, CLOSE)


def test_maps_that_peft_refuses_are_left_out(tmp_path: Path) -> None:
    found, (warning,) = extracted(tmp_path, (model := MODELS["mamba"](quiet_transformers())))
    name = "backbone.layers.0.mixer.in_proj.weight"
    same_state({name: found[name]}, {name: copied(model)[name]}, CLOSE)
    assert "mixer.out_proj.weight" in warning


def test_factors_of_single_experts_are_told(tmp_path: Path) -> None:
    model = MODELS["qwen3-moe"](quiet_transformers())
    saved(tmp_path, model, 5)
    with torch.no_grad():
        model.model.layers[0].mlp.experts.down_proj.mul_(1.1)
    model.save_pretrained(tmp_path / "tuned")
    report = submerge.extract_lora(
        str(tmp_path / "tuned"), tmp_path / "out", base=str(tmp_path / "base"), rank=16, settings=ROOM
    )
    assert any("has factors of single experts (model.layers.0.mlp.experts.0" in w for w in report.warnings)
