"""Models on the Hub, from a server in small: what is fetched, when, and what comes out."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from _hub_server import COMMIT, Hub, run, serving

WEIGHTS = "model.safetensors"


def model(folder: Path, seed: int, rows: int = 40) -> Path:
    """Make a model folder with a header well below the 100 kB that are read of a file at first."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(seed)
    tensors = {f"layers.{i}.w": torch.randn(rows, 3000, generator=generator) for i in range(3)}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / "config.json").write_text('{"model_type": "nothing"}')
    (folder / "vocab.txt").write_text("a\nb\n")
    return folder


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    repos = {f"org/{name}": model(tmp_path / name, seed) for seed, name in enumerate(("base", "one", "two"))}
    repos["org/odd"] = model(tmp_path / "odd", 3, rows=41)
    with serving(repos) as found:
        yield found


def recipe(folder: Path, prefix: str, *models: str) -> str:
    lines = ["merge_method: task_arithmetic", f"base_model: {prefix}base", "models:"]
    lines += [f"  - {{model: {prefix}{name}, parameters: {{weight: 0.5}}}}" for name in models]
    path = folder / f"{'-'.join(models)}-{len(prefix)}.yaml"
    path.write_text("\n".join(lines) + "\n")
    return path.name


def test_a_hub_model_is_planned_by_its_header_and_fetched_for_the_merge(hub: Hub, tmp_path: Path) -> None:
    dense = tmp_path / "base" / "2_Dense"
    dense.mkdir()
    save_file({"linear.weight": torch.ones(2, 2)}, dense / WEIGHTS)
    modules = [{"path": "", "type": "st.Transformer"}, {"path": "2_Dense", "type": "st.Dense"}]
    (tmp_path / "base" / "modules.json").write_text(json.dumps(modules))
    written = recipe(tmp_path, "org/", "one", "two")
    planned = run(hub, tmp_path, "plan", written, "--json")
    assert planned.code == 0, planned.err
    plan = json.loads(planned.out)
    assert plan["reads"] == 3 * 3 * 40 * 3000 * 4
    assert [found["revision"] for found in plan["models"]] == [COMMIT] * 3
    assert hub.whole(WEIGHTS) == 0

    merged = run(hub, tmp_path, "merge", written, "-o", "merged", "-q")
    assert merged.code == 0, merged.err
    assert hub.whole(WEIGHTS) == 4, "the base's dense layer, too, which is copied"
    assert (tmp_path / "merged" / "2_Dense" / WEIGHTS).read_bytes() == (dense / WEIGHTS).read_bytes()
    local = recipe(tmp_path, "./", "one", "two")
    assert run(hub, tmp_path, "merge", local, "-o", "local", "-q").code == 0
    assert (tmp_path / "merged" / WEIGHTS).read_bytes() == (tmp_path / "local" / WEIGHTS).read_bytes()
    manifest = json.loads((tmp_path / "merged" / "submerge.json").read_text())
    assert [found["revision"] for found in manifest["models"]] == [COMMIT] * 3

    hub.asked.clear()
    again = run(hub, tmp_path, "plan", written, "--json", HF_HUB_OFFLINE="1")
    assert again.code == 0, again.err
    assert not hub.asked


def test_shards_in_a_subfolder_are_planned_by_their_headers_and_fetched(hub: Hub, tmp_path: Path) -> None:
    for name in ("base", "one"):
        shard = tmp_path / name / "weights" / "model-00001-of-00001.safetensors"
        shard.parent.mkdir()
        (tmp_path / name / WEIGHTS).rename(shard)
        index = {"weight_map": {f"layers.{i}.w": f"weights/{shard.name}" for i in range(3)}}
        (tmp_path / name / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    written = recipe(tmp_path, "org/", "one")
    planned = run(hub, tmp_path, "plan", written, "--json")
    assert planned.code == 0, planned.err
    assert not hub.whole("weights/model-00001-of-00001.safetensors")
    for prefix, out in (("org/", "merged"), ("./", "local")):
        merged = run(hub, tmp_path, "merge", recipe(tmp_path, prefix, "one"), "-o", out, "-q")
        assert merged.code == 0, merged.err
        assert not (tmp_path / out / "weights").exists()
    assert (tmp_path / "merged" / WEIGHTS).read_bytes() == (tmp_path / "local" / WEIGHTS).read_bytes()


def test_what_cannot_be_merged_is_refused_before_weights_are_fetched(hub: Hub, tmp_path: Path) -> None:
    refused = run(hub, tmp_path, "merge", recipe(tmp_path, "org/", "one", "odd"), "-o", "merged")
    assert refused.code == 2
    assert "shapes differ" in refused.err
    assert "org/odd" in refused.err
    assert "Traceback" not in refused.err
    assert hub.whole(WEIGHTS) == 0
    assert not (tmp_path / "merged").exists()


def test_an_unknown_repository_is_told_by_name(hub: Hub, tmp_path: Path) -> None:
    refused = run(hub, tmp_path, "plan", recipe(tmp_path, "org/", "one", "nobody"))
    assert refused.code == 2
    assert "org/nobody" in refused.err
    assert "Traceback" not in refused.err
