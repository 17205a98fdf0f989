"""How updates overlap: identities of angles and energies, and what SSAM itself reports."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import submerge
from _models import ROOM, perturbed, state, write
from submerge import Inspection
from submerge.engine import InspectionProgress, MatrixOverlap, PairOverlap

SHAPES = {
    "model.embed_tokens.weight": (50, 24),
    "model.layers.0.self_attn.q_proj.weight": (24, 24),
    "model.layers.0.mlp.up_proj.weight": (44, 24),
    "model.layers.0.norm.weight": (24,),
    "lm_head.weight": (50, 24),
}
Q, UP = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.up_proj.weight"
Factors = Mapping[str, tuple[torch.Tensor, torch.Tensor]]
"""Tensor → B [m, r] and A [r, n] of an adapter with alpha = r."""


def factors(rank: int, seed: int, *names: str) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    return {
        name: (
            torch.randn(SHAPES[name][0], rank, generator=draw),
            torch.randn(rank, SHAPES[name][1], generator=draw),
        )
        for name in names or (Q, UP)
    }


def adapter(folder: Path, of_tensors: Factors) -> Path:
    """Write factors as a LoRA adapter of PEFT."""
    folder.mkdir()
    rank = next(iter(of_tensors.values()))[1].shape[0]
    targets = sorted({name.split(".")[-2] for name in of_tensors})
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": targets, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tensors = {}
    for name, (left, right) in of_tensors.items():
        key = f"base_model.model.{name.removesuffix('.weight')}"
        tensors |= {f"{key}.lora_B.weight": left.contiguous(), f"{key}.lora_A.weight": right.contiguous()}
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def recipe(*models: Path, base: Path | None = None, method: str = "ssam", **more: Any) -> dict[str, Any]:
    own: dict[str, Any] = {"merge_method": method, "models": [{"model": str(path)} for path in models]}
    return own | ({"output": {"as": "adapter"}} if base is None else {"base_model": str(base)}) | more


def inspected(source: dict[str, Any], **more: Any) -> Inspection:
    return submerge.inspect_updates(source, settings=ROOM, **more)


def overlap(inspection: Inspection, name: str = UP) -> MatrixOverlap:
    return next(matrix for matrix in inspection.matrices if matrix.name == name)


def pair(inspection: Inspection, name: str = UP) -> PairOverlap:
    (only,) = overlap(inspection, name).pairs
    return only


def in_degrees(angles: tuple[float, ...]) -> list[float]:
    return [math.degrees(angle) for angle in angles]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("base") / "base", state(SHAPES))


def full(folder: Path, base: Path, *of_tensors: Factors) -> Path:
    """Write the base with factors added, as a checkpoint."""
    tensors = state(SHAPES)
    for adapters in of_tensors:
        for name, (left, right) in adapters.items():
            tensors[name] = tensors[name] + left @ right
    return write(folder, tensors)


# --- identities -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [adapter, full])
def test_one_update_twice_has_no_angle_whatever_its_factors(form: Any, base: Path, tmp_path: Path) -> None:
    """LoRA's gauge: B G and G⁻¹ A are the same update for every G, and a scale changes no subspace."""
    one = factors(3, 0)
    gauge = torch.randn(3, 3, generator=torch.Generator().manual_seed(5)) + 3 * torch.eye(3)
    other = {name: (2 * left @ gauge, torch.linalg.inv(gauge) @ right) for name, (left, right) in one.items()}
    if form is full:
        models = [full(tmp_path / "a", base, one), full(tmp_path / "b", base, other)]
        inspection = inspected(recipe(*models, base=base), rank=3)
    else:
        inspection = inspected(recipe(adapter(tmp_path / "a", one), adapter(tmp_path / "b", other)))
    assert inspection.models == ("a", "b")
    for name in (Q, UP):
        both = pair(inspection, name)
        assert in_degrees(both.column_angles) == pytest.approx([0, 0, 0], abs=2e-4)
        assert in_degrees(both.row_angles) == pytest.approx([0, 0, 0], abs=2e-4)
        assert (both.columns, both.rows, both.cosine) == pytest.approx((1, 1, 1), abs=1e-6)
        matrix = overlap(inspection, name)
        assert matrix.norms[1] == pytest.approx(2 * matrix.norms[0], rel=1e-5)
        assert matrix.stable_ranks[0] == pytest.approx(matrix.stable_ranks[1], rel=1e-4)
        assert matrix.kept.at(matrix.max) == pytest.approx(1, abs=1e-6)


def test_orthogonal_updates_have_right_angles_on_their_side(tmp_path: Path) -> None:
    left, right = torch.linalg.qr(torch.randn(44, 6))[0], torch.linalg.qr(torch.randn(24, 6))[0].T
    one = adapter(tmp_path / "a", {UP: (left[:, :3], right[:3])})
    same_rows = adapter(tmp_path / "b", {UP: (left[:, 3:], right[:3])})
    nothing = adapter(tmp_path / "c", {UP: (left[:, 3:], right[3:])})
    only = pair(inspected(recipe(one, same_rows)))
    assert in_degrees(only.column_angles) == pytest.approx([90, 90, 90], abs=1e-4)
    assert in_degrees(only.row_angles) == pytest.approx([0, 0, 0], abs=1e-4)
    assert only.cosine == pytest.approx(0, abs=1e-6)
    inspection = inspected(recipe(one, nothing))
    assert in_degrees(pair(inspection).row_angles) == pytest.approx([90, 90, 90], abs=1e-4)
    matrix = overlap(inspection)
    assert (matrix.half, matrix.max, matrix.full) == (1, 3, 6)
    assert matrix.kept.at(6) == pytest.approx(1, abs=1e-6)
    assert matrix.stable_ranks == pytest.approx((3, 3), rel=1e-5)


@pytest.mark.parametrize("rank", ["2", "max", "full"])
def test_kept_energy_is_what_ssam_reports(rank: str, tmp_path: Path) -> None:
    models = [adapter(tmp_path / name, factors(r, r)) for name, r in (("a", 3), ("b", 4), ("c", 2))]
    source = recipe(*models, parameters={"rank": rank})
    report = submerge.merge(source, tmp_path / "out", settings=ROOM)
    inspection = inspected(source)
    for name, figures in report.figures.items():
        matrix = overlap(inspection, name)
        assert (matrix.half, matrix.max, matrix.full) == (2, 4, 9)
        k = int(rank) if rank.isdecimal() else getattr(matrix, rank)
        assert figures["k"] == k
        place = matrix.kept.ranks.index(k)
        assert matrix.kept.at(k) == pytest.approx(figures["kept"], abs=1e-6)
        assert matrix.kept.left[place] == pytest.approx(figures["kept_left"], abs=1e-6)
        assert matrix.kept.right[place] == pytest.approx(figures["kept_right"], abs=1e-6)
        assert [matrix.kept.at(k, t) for t in range(3)] == pytest.approx(figures["kept_each"], abs=1e-6)


def test_adapters_and_the_checkpoints_that_they_make_overlap_alike(base: Path, tmp_path: Path) -> None:
    """Also one of each, where there is no small frame."""
    first, second = factors(3, 0), factors(4, 1)
    adapters = [adapter(tmp_path / "a", first), adapter(tmp_path / "b", second)]
    checkpoint = full(tmp_path / "full", base, second)
    expected = inspected(recipe(*adapters, base=base), rank=3)
    for models in ([full(tmp_path / "dense", base, first), checkpoint], [adapters[0], checkpoint]):
        found = inspected(recipe(*models, base=base), rank=3)
        for name in (Q, UP):
            one, other = pair(found, name), pair(expected, name)
            assert one.cosine == pytest.approx(other.cosine, abs=1e-5)
            assert one.column_angles == pytest.approx(other.column_angles, abs=1e-4)
            assert one.row_angles == pytest.approx(other.row_angles, abs=1e-4)
            a, b = overlap(found, name), overlap(expected, name)
            assert (a.norms, a.stable_ranks) == (
                pytest.approx(b.norms, rel=1e-5),
                pytest.approx(b.stable_ranks, rel=1e-4),
            )
            assert a.kept.ranks == b.kept.ranks
            assert a.kept.both == pytest.approx(b.kept.both, abs=1e-5)


# --- which matrices, which models -------------------------------------------------------------------------


def test_a_matrix_that_one_model_leaves_alone_has_no_pair(base: Path, tmp_path: Path) -> None:
    models = [adapter(tmp_path / "a", factors(2, 0)), adapter(tmp_path / "b", factors(2, 1, Q))]
    source = recipe(*models, base=base, method="linear", parameters={"weight": 1})
    inspection = inspected(source)  # of any method
    assert [matrix.name for matrix in inspection.matrices] == [UP, Q]  # tables are no matrices
    matrix = overlap(inspection, UP)
    assert matrix.pairs == ()
    assert matrix.ranks == (2, 0)
    assert (matrix.norms[1], matrix.stable_ranks[1]) == (0, 0)
    assert len(pair(inspection, Q).row_angles) == 2
    third = adapter(tmp_path / "c", factors(2, 2, Q))
    assert inspected(recipe(models[1], third, base=base)).untouched == (UP,)


def test_layers_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    names = [f"model.layers.{number}.mlp.up_proj.weight" for number in (0, 2, 10)]
    of_layers = {name: factors(2, 0, UP)[UP] for name in names}
    models = [adapter(tmp_path / name, of_layers) for name in "ab"]
    assert [matrix.name for matrix in inspected(recipe(*models)).matrices] == names


def test_models_of_one_name_are_called_by_their_paths(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
    models = [
        adapter(tmp_path / "x" / "lora", factors(2, 0)),
        adapter(tmp_path / "y" / "lora", factors(2, 1)),
    ]
    assert inspected(recipe(*models)).models == tuple(map(str, models))


def test_options_gates_and_other_shapes_do_not_matter(base: Path, tmp_path: Path) -> None:
    """Nothing is merged: heads of other shapes, which only a gate's method takes, are left out."""
    tuned = [perturbed(state(SHAPES), seed) for seed in (0, 1)]
    tuned[1]["lm_head.weight"] = torch.zeros(7, 24)
    models = [write(tmp_path / f"m{i}", tensors) for i, tensors in enumerate(tuned)]
    inspection = inspected(recipe(*models, base=base, method="mass"))
    assert [matrix.name for matrix in inspection.matrices] == [UP, Q]
    assert overlap(inspection).max == 24  # of a side of 24: the default, 32, is more
    again = inspected(recipe(*models, base=base, method="ties", parameters={"density": 0.3, "weight": 1}))
    assert again == inspection


def test_the_base_among_the_models_does_not_count(base: Path, tmp_path: Path) -> None:
    models = [adapter(tmp_path / name, factors(2, seed)) for seed, name in enumerate("ab")]
    listed = recipe(base, *models, base=base, method="linear", parameters={"weight": 1})
    assert inspected(listed).models == ("a", "b")


def test_threads_change_nothing_and_progress_is_told(tmp_path: Path) -> None:
    models = [adapter(tmp_path / name, factors(2, seed)) for seed, name in enumerate("ab")]
    seen: list[InspectionProgress] = []
    one = submerge.inspect_updates(
        recipe(*models),
        settings=submerge.Settings(max_memory=ROOM.max_memory, threads=1),
        progress=seen.append,
    )
    assert one == inspected(recipe(*models))
    assert (seen[0].done, seen[-1].done, seen[-1].total) == (0, 2, 2)


def test_json_has_everything(tmp_path: Path) -> None:
    models = [adapter(tmp_path / name, factors(2, seed)) for seed, name in enumerate("ab")]
    inspection = inspected(recipe(*models), rank=1)
    content = json.loads(json.dumps(inspection.to_dict(), allow_nan=False))
    assert Inspection.from_dict(content) == inspection
    assert content["rank"] == 1
    assert len(content["matrices"][0]["pairs"][0]["column_angles"]) == 1


# --- what is refused --------------------------------------------------------------------------------------


def refusal(source: dict[str, Any], **more: Any) -> str:
    with pytest.raises(submerge.RequestError) as error:
        inspected(source, **more)
    return str(error.value)


def test_a_single_model_is_refused(base: Path, tmp_path: Path) -> None:
    one = adapter(tmp_path / "a", factors(2, 0))
    assert "two models or more; found 1 besides the base — name another" in refusal(recipe(one, base=base))
    with_base = recipe(base, one, base=base, method="linear", parameters={"weight": 1})
    assert "found 1 besides the base" in refusal(with_base)


def test_checkpoints_without_a_base_are_refused(base: Path, tmp_path: Path) -> None:
    models = [full(tmp_path / name, base, factors(2, seed)) for seed, name in enumerate("ab")]
    source = {"merge_method": "linear", "models": [{"model": str(path)} for path in models]}
    told = refusal(source | {"parameters": {"weight": 1}})
    assert "updates are differences from a base, and none is named — add 'base_model: …'" in told


def test_models_that_change_no_matrix_are_refused(base: Path, tmp_path: Path) -> None:
    same = [write(tmp_path / name, state(SHAPES)) for name in "ab"]
    assert "do not differ from their base in any weight matrix" in refusal(recipe(*same, base=base))


def test_a_rank_below_one_is_refused(tmp_path: Path) -> None:
    models = [adapter(tmp_path / name, factors(2, seed)) for seed, name in enumerate("ab")]
    assert "--rank: the rank must be at least 1; found 0" in refusal(recipe(*models), rank=0)


@pytest.mark.parametrize("form", [adapter, full])
def test_nan_is_named(form: Any, base: Path, tmp_path: Path) -> None:
    bad = factors(2, 0)
    bad[UP][0][3, 1] = math.nan
    models = [
        adapter(tmp_path / name, one) if form is adapter else full(tmp_path / name, base, one)
        for name, one in (("a", bad), ("b", factors(2, 1)))
    ]
    with pytest.raises(submerge.WorkError, match=f"tensor {UP}.*NaN or Inf"):
        inspected(recipe(*models, base=base))


def test_what_of_adapters_deserves_a_look_is_told(tmp_path: Path) -> None:
    models = [adapter(tmp_path / name, factors(2, seed)) for seed, name in enumerate("ab")]
    for folder in models:
        config = json.loads((folder / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = f"org/base-of-{folder.name}"
        (folder / "adapter_config.json").write_text(json.dumps(config))
    inspection = inspected(recipe(*models))
    (warning,) = inspection.warnings
    assert warning.startswith("the adapters were trained on different models, as their files say: ")
    assert Inspection.from_dict(inspection.to_dict()) == inspection
