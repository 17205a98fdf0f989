"""Weight matrices that are merged whole: which they are, how they are held, and what is said of them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import submerge
from _models import ROOM, Family, contents, perturbed, read, state, write
from submerge.engine import compute_seconds

SHAPES = {
    "model.embed_tokens.weight": (50, 24),
    "model.layers.0.mlp.up.weight": (44, 24),
    "model.layers.0.mlp.down.weight": (24, 44),
    "model.layers.0.norm.weight": (24,),
    "model.conv.weight": (6, 3, 2, 2),
    "lm_head.weight": (50, 24),
}
METHODS = ("cat", "knots_ties", "tsv_m", "iso_c", "iso_cts", "ssam", "wudi")


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    root = tmp_path_factory.mktemp("models")
    base = state(SHAPES)
    tuned = tuple(write(root / f"tuned{i}", perturbed(base, i)) for i in range(3))
    return Family(write(root / "base", base), tuned, "Toy")


def recipe(family: Family, method: str, **options: Any) -> dict[str, Any]:
    models = [{"model": str(path)} for path in family.tuned]
    return {
        "merge_method": method,
        "base_model": str(family.base),
        "models": models,
        "parameters": options,
        "dtype": "float32",
    }


@pytest.mark.parametrize("method", METHODS)
def test_updates_that_are_read_anew_merge_as_those_that_are_held(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    options = {"rank": 8} if method == "ssam" else {}
    held = read(submerge.merge(recipe(family, method, **options), tmp_path / "held", settings=ROOM).out)
    monkeypatch.setattr("submerge.engine.work._matrix.HELD", 1)
    monkeypatch.setattr("submerge.algebra._update.BLOCK", 100)
    anew = read(submerge.merge(recipe(family, method, **options), tmp_path / "anew", settings=ROOM).out)
    for name, tensor in held.items():
        torch.testing.assert_close(anew[name], tensor, rtol=1e-5, atol=1e-6)


def test_figures_are_in_the_report_and_the_manifest(family: Family, tmp_path: Path) -> None:
    report = submerge.merge(recipe(family, "ssam", rank=5), tmp_path / "out", settings=ROOM)
    assert set(report.figures) == {name for name in SHAPES if "mlp" in name}
    for figures in report.figures.values():
        assert figures["k"] == 5
        assert 0 < figures["kept"] < 1
        assert len(figures["kept_each"]) == 3
    written = json.loads((tmp_path / "out" / "submerge.json").read_text())
    assert {n: t["figures"] for n, t in written["tensors"].items() if "figures" in t} == report.figures


@pytest.mark.parametrize("method", ["iso_c", "ssam"])
def test_a_stopped_run_resumes(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    from submerge.engine.output import _run

    class Stop(Exception):  # noqa: N818
        pass

    finished = _run.Run._finished

    def stop(self: Any, record: Any) -> None:
        finished(self, record)
        if "down" in self.plan.tensors[record.tensor].name:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(_run.Run, "_finished", stop)
        with pytest.raises(Stop):
            submerge.merge(recipe(family, method), tmp_path / "out", settings=ROOM)
    report = submerge.merge(recipe(family, method), tmp_path / "out", settings=ROOM, resume=True)
    assert report.resumed
    submerge.merge(recipe(family, method), tmp_path / "whole" / "out", settings=ROOM)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole" / "out")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_cannot_be_decomposed_are_told(tmp_path: Path, method: str, value: float) -> None:
    base = state(SHAPES)
    tuned = perturbed(base, 1)
    tuned["model.layers.0.mlp.up.weight"][3, 4] = value
    paths = (write(tmp_path / "bad", tuned), write(tmp_path / "good", perturbed(base, 2)))
    family = Family(write(tmp_path / "base", base), paths, "Toy")
    with pytest.raises(submerge.WorkError, match=r"mlp\.up\.weight"):
        submerge.merge(recipe(family, method), tmp_path / "out", settings=ROOM)
    assert not (tmp_path / "out").exists()


def test_time_and_memory_are_estimated(family: Family) -> None:
    for method in METHODS:
        plan = submerge.plan(recipe(family, method), ROOM)
        assert compute_seconds(plan) > 0
        assert plan.budget.per_worker > 0


def test_methods_on_matrices_are_planned_for_more_memory(family: Family) -> None:
    plain, whole = (submerge.plan(recipe(family, m), ROOM).budget.per_worker for m in ("cat", "iso_c"))
    assert whole >= plain


def test_a_state_dict_merges_as_its_files(family: Family, tmp_path: Path) -> None:
    out = read(submerge.merge(recipe(family, "tsv_m"), tmp_path / "out", settings=ROOM).out)
    states = [read(path) for path in family.tuned]
    for name, tensor in submerge.merge_state_dicts(states, base=read(family.base), method="tsv_m").items():
        assert torch.equal(tensor.float(), out[name])
