"""Adapters on the Hub, whose configuration names a base on the Hub."""

import json
from pathlib import Path

from _adapters import make_tuned, same_state
from _hub_server import Hub, run, serving
from _models import read

WEIGHTS = "adapter_model.safetensors"


def submerge(hub: Hub, folder: Path, *argv: str, **environment: str) -> str:
    """Return what the command prints, which must not fail."""
    result = run(hub, folder, *argv, **environment)
    assert result.code == 0, result.err
    return result.out


def test_an_adapter_and_its_base_are_fetched(tmp_path: Path) -> None:
    made = make_tuned(tmp_path / "made", "llama", {"r": 2, "target_modules": ["q_proj"]})
    path = made.adapters[0] / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "org/base"}))
    recipe = tmp_path / "r.yaml"
    recipe.write_text("merge_method: linear\nmodels: [{model: org/lora, parameters: {weight: 1}}]\n")
    with serving({"org/base": made.base, "org/lora": made.adapters[0]}) as hub:
        plan = json.loads(submerge(hub, tmp_path, "plan", "r.yaml", "--json"))
        assert hub.whole(WEIGHTS) == hub.whole("/model.safetensors") == 0
        assert {found["model"] for found in plan["models"]} == {"org/lora"}
        submerge(hub, tmp_path, "merge", "r.yaml", "-o", "merged", "-q")
        assert hub.whole(WEIGHTS) == hub.whole("/model.safetensors") == 1
        hub.asked.clear()
        submerge(hub, tmp_path, "merge", "r.yaml", "-o", "lora", "-q", "--as", "adapter", HF_HUB_OFFLINE="1")
        assert not hub.asked
    same_state(read(tmp_path / "merged"), made.merged[0], 1e-5)
    same_state(made.loaded(tmp_path / "lora"), made.merged[0], 1e-5)
    manifest = json.loads((tmp_path / "merged" / "submerge.json").read_text())
    assert "revision" in manifest["models"][0]["adapter"]


def test_of_a_base_on_the_hub_the_configuration_alone_tells_what_is_fused(tmp_path: Path) -> None:
    options = {"r": 2, "target_modules": ["c_attn"]}
    made = make_tuned(tmp_path / "made", "gpt2", options, options)
    recipe = made.recipe("ssam", base="org/base", output={"as": "adapter"})
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    with serving({"org/base": made.base}) as hub:
        told = run(hub, tmp_path, "merge", "r.yaml", "-o", "alone", HF_HUB_OFFLINE="1")
        assert told.code == 2
        assert "say fused: whole to take each as one" in told.err
        submerge(hub, tmp_path, "merge", "r.yaml", "-o", "out")
        assert hub.whole("config.json") == 1
        assert hub.whole("model.safetensors") == 0
        hub.asked.clear()
        submerge(hub, tmp_path, "merge", "r.yaml", "-o", "again", HF_HUB_OFFLINE="1")
        assert not hub.asked
    ranks = {
        folder: {
            module["rank"]
            for module in json.loads((tmp_path / folder / "submerge.json").read_text())["modules"].values()
        }
        for folder in ("out", "again")
    }
    assert ranks == {"out": {6}, "again": {6}}
