"""The benchmark of recipes: both tools read them, rows are compared by tokens, the page says what holds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("psutil")
pytest.importorskip("tokenizers")

from benchmarks.console import silent
from benchmarks.recipes import __main__ as command
from benchmarks.recipes import bench, report, subjects
from benchmarks.recipes.cases import CASES
from benchmarks.recipes.sampled import rows_by_token, sampled
from benchmarks.speed import outputs
from benchmarks.speed.models import SIZES, weights_file

from submerge.engine import Settings, plan_documents
from submerge.recipe import load_documents

RUN = {"seconds": 2.0, "peak_bytes": 4e8, "private_bytes": 1e8, "cpu_seconds": 3.0}
ROOM = Settings(max_memory=64 * 10**9)


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same models, with few and small tensors."""
    tiny = SIZES["tiny"]
    monkeypatch.setitem(SIZES, "110m", tiny)
    monkeypatch.setattr(subjects, "DEEP", replace(tiny, layers=80))
    monkeypatch.setattr(subjects, "SMALL", tiny)


def measured(seconds: float, agreement: float = 1.0) -> dict[str, Any]:
    case = {"title": "a stack", "program": "mergekit-yaml", "inputs_bytes": 3e8, "agreement": agreement}
    return case | {
        "submerge": {"runs": [RUN, RUN, RUN | {"seconds": 9.0, "peak_bytes": 2e9}]},
        "mergekit": {"runs": [RUN | {"seconds": seconds}]},
    }


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.ours == "merge"])
def test_the_recipes_are_understood(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    models = case.models(tmp_path, silent)
    case.write(tmp_path / "recipe.yaml", models)
    plans = plan_documents(load_documents(tmp_path / "recipe.yaml"), ROOM)
    counts = {"stack": 120 * 9 + 3, "documents": 21, "vocabularies": 21}
    assert len(plans[""].tensors) == counts[name]
    assert len(plans) == (5 if name == "documents" else 1)


@pytest.mark.usefixtures("_small")
def test_rows_are_compared_by_their_tokens(tmp_path: Path) -> None:
    large = subjects.vocabularies(tmp_path, silent)["large"]
    rows = rows_by_token(large)
    assert rows is not None
    assert sorted(rows) == list(range(SIZES["tiny"].vocabulary + subjects.NEW_TOKENS))
    assert rows_by_token(tmp_path) is None
    shown = sampled(large)["lm_head.weight"]
    weights = load_file(weights_file(large))["lm_head.weight"]
    assert torch.equal(shown, outputs.spread(weights[rows]))


def test_experts_are_compared_one_by_one(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    gates, ups, downs = (torch.randn(2, *shape, generator=draw) for shape in ((6, 4), (6, 4), (4, 6)))
    router = torch.randn(2, 4, generator=draw)
    packed = {
        "l.0.mlp.gate.weight": router,
        "l.0.mlp.experts.gate_up_proj": torch.cat([gates, ups], 1),
        "l.0.mlp.experts.down_proj": downs,
    }
    own = {"l.0.block_sparse_moe.gate.weight": router}
    for kind, experts in (("w1", gates), ("w3", ups), ("w2", downs)):
        own |= {f"l.0.block_sparse_moe.experts.{i}.{kind}.weight": experts[i].clone() for i in range(2)}
    samples = []
    for name, tensors in (("packed", packed), ("own", own)):
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
        samples.append(sampled(tmp_path / name))
    assert outputs.agreement(samples[0], samples[1], "float32") == 1


def test_the_page_says_what_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(self: Any, name: str, case: Any) -> dict[str, Any] | None:
        return None if case.ours == "moe" else measured(8.0 if name == "stack" else 5.0, 0.5)

    monkeypatch.setattr(bench.RecipeBench, "measure", measure)
    arguments = ["--work", str(tmp_path / "work"), "--out", str(tmp_path), "--threads", "1"]
    assert command.main(arguments) == 0
    page = (tmp_path / "recipes.md").read_text()
    assert "4.0×; ≥ 3 met" in page
    assert "2.5×; ≥ 3 **missed**" in page
    assert "2.00; ≤ 1 **missed**" in page
    assert "50.00%; ≥ 0.95 **missed**" in page
    assert "has no such command: a Mixtral of four experts." in page
    monkeypatch.setattr(bench.RecipeBench, "measure", lambda self, name, case: measured(20.0))
    assert command.main([*arguments, "--only", "mixture"]) == 0
    results = json.loads((tmp_path / "recipes.json").read_text())
    assert list(results["cases"]) == list(CASES), "what is not measured again stays"
    assert report.markdown(results).count("10.0×") == 1
