"""Composed models of specialists on the Hub: what is fetched, when, and that the same comes out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import submerge
from _cli import Result
from _hub_server import COMMIT, Hub, Runner, importing, run, serving
from _models import ROOM
from _specialists import Specialists, make_specialists

WEIGHTS = "/model.safetensors"
ADAPTERS = {"language_lora": "hearing-language", "modality_lora": "hearing-audio"}
REPOS = {
    **{f"org/{name}": name for name in ("base", "vision", "hearing", *ADAPTERS.values())},
    **{f"other/{name}": name for name in ("base", "vision", "both")},
}
"""The folder of each repository. Those of `other` are asked for by a single test: all share one cache."""
CLASSES = ("llava.modeling_llava", "qwen2_audio.modeling_qwen2_audio")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Specialists:
    """A vision model, a hearing model with two adapters, and an adapter alone that names its model."""
    specialists = make_specialists(tmp_path_factory.mktemp("specialists"))
    specialists.adapt("hearing", "hearing-language", 2, r=3)
    specialists.adapt("hearing", "hearing-audio", 3)
    specialists.adapt("vision", "both", 4)
    path = specialists.path("both") / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "other/vision"}))
    return specialists


def recipe(prefix: str, *entries: dict[str, Any]) -> dict[str, Any]:
    named = [
        {k: f"{prefix}{v}" if k == "model" or k.endswith("lora") else v for k, v in entry.items()}
        for entry in entries
    ]
    parameters = {"weight": 0.5}
    base = f"{prefix}base"
    return {"merge_method": "ssam", "base_model": base, "models": named, "parameters": parameters}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which commands run."""
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def hub(made: Specialists) -> Iterator[Hub]:
    with serving({repo: made.path(name) for repo, name in REPOS.items()}) as hub:
        yield hub


@pytest.fixture(scope="module")
def command(hub: Hub, place: Path) -> Iterator[Runner]:
    with importing(hub, place, *(f"transformers.models.{name}" for name in CLASSES)) as command:
        yield command


def succeeded(result: Result) -> str:
    assert result.code == 0, result.err
    return result.out


def test_specialists_are_planned_by_small_files_and_fetched_for_the_merge(
    made: Specialists, hub: Hub, command: Runner, place: Path, tmp_path: Path
) -> None:
    entries = [
        {"model": "vision", "modality": "image"},
        {"model": "hearing", "modality": "audio", **ADAPTERS},
    ]
    (place / "r.yaml").write_text(yaml.safe_dump(recipe("org/", *entries)))
    merged = place / "merged"
    hub.asked.clear()
    plan = json.loads(succeeded(command("plan", "r.yaml", "--json")))
    assert hub.asked
    assert hub.whole(WEIGHTS) == 0
    assert {model.get("revision") for model in plan["models"]} == {COMMIT}
    assert [s["placeholder_id"] for s in plan["specialists"]] == [64, 65]
    assert "values of org/vision" in succeeded(command("explain", "r.yaml", "-t", "q_proj"))
    assert hub.whole(WEIGHTS) == 0
    succeeded(command("merge", "r.yaml", "-o", "merged", "-q"))
    assert hub.whole(WEIGHTS) == 3
    hub.asked.clear()
    succeeded(run(hub, place, "merge", "r.yaml", "-o", "again", "-q", HF_HUB_OFFLINE="1"))
    assert not hub.asked
    submerge.merge(recipe(f"{made.root}/", *entries), tmp_path / "local", settings=ROOM)
    assert submerge.verify(merged).sound
    files = {
        path.relative_to(tmp_path / "local") for path in (tmp_path / "local").rglob("*") if path.is_file()
    }
    told = {Path(name) for name in ("README.md", "submerge.json")}  # in which models have other names
    for name in files - told:
        assert (merged / name).read_bytes() == (tmp_path / "local" / name).read_bytes(), name


def test_an_adapter_alone_names_its_model(
    made: Specialists, hub: Hub, command: Runner, place: Path, tmp_path: Path
) -> None:
    (place / "r2.yaml").write_text(yaml.safe_dump(recipe("other/", {"model": "both", "modality": "image"})))
    hub.asked.clear()
    succeeded(command("plan", "r2.yaml"))
    assert hub.asked
    assert hub.whole(WEIGHTS) == 0
    succeeded(command("merge", "r2.yaml", "-o", "alone", "-q"))
    report = submerge.verify(place / "alone")
    assert report.sound, report.problems
    entry = {"model": "vision", "modality": "image", "lora": "both"}
    submerge.merge(recipe(f"{made.root}/", entry), tmp_path / "local", settings=ROOM)
    for file in ("model.safetensors", "bank.safetensors"):
        assert (place / "alone" / file).read_bytes() == (tmp_path / "local" / file).read_bytes()
