"""What files beside the weights say of inputs and outputs, in the words of all versions."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import submerge
from _models import SMALL, perturbed, state, write
from store.helpers_adapter import by_hand
from submerge.store import input_settings

OLD = {
    "preprocessor_config.json": {
        "image_processor_type": "CLIPFeatureExtractor",
        "size": 224,
        "crop_size": 224,
        "image_mean": [0.5, 0.4, 0.3],
        "do_normalize": True,
    }
}
NEW = {
    "processor_config.json": {
        "processor_class": "CLIPProcessor",
        "image_processor": {
            "size": {"shortest_edge": 224},
            "crop_size": {"height": 224, "width": 224},
            "image_mean": [0.5, 0.4, 0.3],
            "do_normalize": True,
        },
    }
}
MODULES = [{"path": "", "type": "st.models.Transformer"}, {"path": "1_Pooling", "type": "st.models.Pooling"}]
SWITCHES = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False, "include_prompt": True}


def put(folder: Path, files: dict[str, Any]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (OLD, NEW),
        (
            {"modules.json": MODULES, "1_Pooling/config.json": SWITCHES},
            {"modules.json": MODULES, "1_Pooling/config.json": {"pooling_mode": "cls"}},
        ),
    ],
)
def test_versions_say_the_same(one: dict[str, Any], other: dict[str, Any], tmp_path: Path) -> None:
    told = input_settings(put(tmp_path / "one", one), None)
    assert told
    assert told == input_settings(put(tmp_path / "other", other), None)


def test_what_is_broken_says_nothing(tmp_path: Path) -> None:
    files = dict.fromkeys(("preprocessor_config.json", "modules.json", "open_clip_config.json"), "{")
    assert input_settings(put(tmp_path, files), None) == {}


def test_timm_and_open_clip(tmp_path: Path) -> None:
    files = {"open_clip_config.json": {"preprocess_cfg": {"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]}}}
    config = {"pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [1.0, 1.0, 1.0]}}
    assert input_settings(put(tmp_path / "clip", files), None) == input_settings(tmp_path / "none", config)


def warnings(tmp_path: Path, base: dict[str, Any], own: dict[str, Any]) -> list[str]:
    """Return what a plan says of a base and a fine-tune with these files beside their weights."""
    put(write(tmp_path / "base", state(SMALL)), base)
    put(write(tmp_path / "own", perturbed(state(SMALL), 1)), own)
    recipe = {"merge_method": "linear", "base_model": str(tmp_path / "base"),
              "models": [str(tmp_path / "own")], "parameters": {"weight": 1.0}}  # fmt: skip
    return [text.replace(f"{tmp_path}/", "") for text in submerge.plan(recipe).warnings]


def test_a_plan_tells_of_other_images(tmp_path: Path) -> None:
    others = OLD["preprocessor_config.json"] | {"image_mean": [0.5] * 3, "size": 336}
    told = "it is used with image_mean 0.5 and not 0.5, 0.4, 0.3, size 336 and not 224"
    assert warnings(tmp_path, NEW, {"preprocessor_config.json": others}) == [
        f"own: {told}, as the files beside its weights say; the output has those of base"
    ]


def test_a_plan_tells_of_other_pooling_and_prompts(tmp_path: Path) -> None:
    base = {"modules.json": MODULES, "1_Pooling/config.json": SWITCHES}
    own = {
        "modules.json": [*MODULES, {"path": "2_Normalize", "type": "st.Normalize"}],
        "1_Pooling/config.json": {"pooling_mode": "mean"},
        "config_sentence_transformers.json": {"prompts": {"query": "q: ", "document": ""}},
    }
    (warning,) = warnings(tmp_path, base, own)
    assert "modules.json Transformer, Pooling, Normalize and not Transformer, Pooling" in warning
    assert "pooling mean and not cls" in warning
    assert "prompts {'query': 'q: '} and not none" in warning


def test_an_adapter_that_sentence_transformers_saved_has_its_own(tmp_path: Path) -> None:
    files = {"modules.json": MODULES, "1_Pooling/config.json": SWITCHES}
    base = write(tmp_path / "base", {"q.weight": torch.ones(3, 4)}, {"model_type": "bert"})
    adapter = by_hand(put(tmp_path / "adapter", files))
    recipe = {"merge_method": "passthrough", "models": [f"{base}+{adapter}"]}
    (warning,) = submerge.plan(recipe).warnings
    assert "pools texts as its modules.json says" in warning
    put(base, files)
    assert submerge.plan(recipe).warnings == ()


def test_a_plan_tells_what_the_output_lacks(tmp_path: Path) -> None:
    own = {**OLD, "modules.json": MODULES, "1_Pooling/config.json": SWITCHES}
    lacking, left = warnings(tmp_path, {"mm_projector.bin": "x"}, own)
    told = (
        "own: pools texts as its modules.json says and has the settings of an image processor, and base has"
    )
    assert lacking == f"{told} no such files: nor has the output, unless you copy them"
    assert left == (
        "base: what else its folder has of weights is not copied (mm_projector.bin): copy what the model is "
        "used with, or merge it by a recipe of its own"
    )


def test_a_plan_tells_of_shards_that_are_not_read(tmp_path: Path) -> None:
    own = {"model-00001-of-00002.safetensors": "x", "model.safetensors.index.json": "{}"}
    assert warnings(tmp_path, {}, own) == [
        "own: model.safetensors is read, as transformers does, and not the shards beside it "
        "(model-00001-of-00002.safetensors): move away what is left from another training"
    ]
