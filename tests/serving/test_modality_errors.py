"""What a composed model refuses: inputs that do not fit the placeholders, classes, damaged folders."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import submerge
from _models import VISION, quiet_transformers
from serving.helpers_composed import (
    IMAGE,
    TEXT,
    Specialist,
    factors,
    lora,
    normal,
    prompt,
    specialist,
    write_composed,
)
from submerge.gating import UnsplitError
from submerge.report import survey
from submerge.serving import export_adapters

pytest.importorskip("transformers")


def refusal(call: Any, *parts: str) -> None:
    with pytest.raises(submerge.RequestError) as caught:
        call()
    for part in parts:
        assert part in str(caught.value), caught.value


@pytest.fixture(scope="module")
def one() -> Specialist:
    return specialist("llava", seed=1)


@pytest.fixture(scope="module")
def folder(one: Specialist, tmp_path_factory: pytest.TempPathFactory) -> Path:
    lm = one.lm()
    bank = factors("streams.0", lora(lm, seed=50))
    return write_composed(tmp_path_factory.mktemp("one") / "out", lm, [one], bank)


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return submerge.load(folder)


def test_inputs_and_placeholders_must_go_together(model: Any, one: Specialist) -> None:
    ids, inputs = prompt(1, 4, one, 3), one.inputs(1)
    for call in (model, model.generate):
        refusal(lambda c=call: c(ids, **one.inputs(1, 2)), "modality image", "4 placeholders", "8 features")
        refusal(lambda c=call: c(ids[:, :-4], **inputs), "modality image", "3 placeholders", "4 features")
        refusal(lambda c=call: c(ids), "image", "4 placeholders", "0 features", "give pixel_values")
        refusal(lambda c=call: c(prompt(1, 9), **inputs), "image", "0 placeholders", "4 features")
    embeddings = model.get_input_embeddings()(ids)
    refusal(lambda: model(**inputs), "pixel_values without input_ids")
    for call in (model, model.generate):
        both = {"inputs_embeds": embeddings, **inputs}
        refusal(lambda c=call, b=both: c(**b), "inputs_embeds beside pixel_values", "give input_ids")
        refusal(lambda c=call, b=both: c(ids, **b), "inputs_embeds beside pixel_values")
    refusal(lambda: model(prompt(1, 9), **inputs), "of a text that marks where each input stands")
    refusal(lambda: model(ids, pixel_values="a picture"), "modality image", "do not fit")
    refusal(lambda: model(ids, pixel_values=normal(1, 1, 4, 16, 16)), "do not fit", "4 channels")
    assert model(ids, **inputs).logits.shape[:2] == ids.shape, "nothing is left of passes that failed"
    refusal(lambda: model(ids[0], **inputs), "input_ids have the shape [11]", "give a batch [B, L]")


def test_features_of_a_class_that_counts_with_the_prompt_alone(tmp_path: Path) -> None:
    one = specialist("qwen2_audio", "qwen2", seed=1)
    model = submerge.load(write_composed(tmp_path, one.lm(), [one], {}))
    ids = prompt(1, 4, one, 3)
    refusal(lambda: model(ids, **one.inputs(1, 2)), "modality audio", "tokens: 5, features: 10")
    features = one.inputs(1)["input_features"]
    refusal(lambda: model(ids, input_features=features), "modality audio", "do not fit")
    unexpanded = torch.tensor([[4, 5, one.placeholder, 6]])
    refusal(lambda: model(unexpanded, **one.inputs(1)), "modality audio", "1 placeholders", "of its own")


def test_a_modality_without_a_specialist_is_told(model: Any, one: Specialist) -> None:
    sound = {"input_features": normal(1, 1, 8, 32)}
    for call in (model, model.generate):
        refusal(
            lambda c=call: c(prompt(1, 4), **sound),
            "no specialist for input_features",
            "those of image, which take image_sizes, pixel_values",
        )
    assert model(prompt(1, 4), input_features=None).logits.shape[1] == 4


def test_shared_names_need_their_modality(one: Specialist, tmp_path: Path) -> None:
    other = Specialist("depth", specialist("llava", seed=2).model, "image", 75, 4, one.make)
    other.model.config.image_token_id = 75
    model = submerge.load(write_composed(tmp_path, one.lm(), [one, other], {}))
    ids = prompt(1, 2, one, 3, other, 1)
    refusal(lambda: model(ids, **one.inputs(1)), "no specialist for pixel_values", "depth_pixel_values")
    inputs = {"image_pixel_values": normal(1, 1, 3, 16, 16), "depth_pixel_values": normal(2, 1, 3, 16, 16)}
    swapped = {
        "image_pixel_values": inputs["depth_pixel_values"],
        "depth_pixel_values": inputs["image_pixel_values"],
    }
    assert (model(ids, **inputs).logits - model(ids, **swapped).logits).abs().max() > 0.01


def test_classes_that_hand_over_more_than_embeddings_are_told(tmp_path: Path) -> None:
    t = quiet_transformers()
    config = t.Gemma3Config(
        vision_config=VISION,
        text_config=t.Gemma3TextConfig(**TEXT, head_dim=8),
        image_token_index=IMAGE,
        mm_tokens_per_image=4,
    )
    gemma = t.Gemma3ForConditionalGeneration(config).eval()
    one = Specialist(
        "image", gemma, "image", IMAGE, 4, lambda seed: {"pixel_values": normal(seed, 1, 3, 16, 16)}
    )
    folder = write_composed(tmp_path, specialist("llava").lm(), [one], {})
    refusal(
        lambda: submerge.load(folder),
        "Gemma3ForConditionalGeneration hands more than embeddings to its language model: attention_mask",
    )


def test_a_class_that_takes_inputs_for_tokens_is_told(model: Any, one: Specialist) -> None:
    """Emu3 and Chameleon embed an image's codes in the language model's own table, which is not there."""
    again = copy.deepcopy(model)
    own = again.encoders[0].model.model
    codes = torch.tensor([5, 6, 7, 8])
    own.get_image_features = lambda **_: SimpleNamespace(pooler_output=[own.get_input_embeddings()(codes)])
    what = "LlavaForConditionalGeneration makes features of its language model's own embeddings"
    refusal(lambda: again(prompt(1, 4, one, 3), **one.inputs(1)), what, "cannot be a specialist")


def test_a_module_that_mixes_positions_is_told(model: Any, one: Specialist) -> None:
    def mixes(*args: Any) -> None:
        raise UnsplitError

    hook = model.model.norm.register_forward_hook(mixes)
    refusal(lambda: model(prompt(1, 4, one), **one.inputs(1)), "cannot tell rows apart")
    hook.remove()
    assert model.controller.gated.gate.assignment is None


def test_what_is_for_tasks_is_refused(folder: Path, tmp_path: Path) -> None:
    refusal(lambda: export_adapters(folder, tmp_path / "adapters"), "composed model", "no tasks")
    (tmp_path / "inputs.jsonl").write_text('{"text": "a"}\n')
    refusal(lambda: survey(folder, tmp_path / "inputs.jsonl"), "routes no inputs")


# --- folders --------------------------------------------------------------------------------------


@pytest.fixture
def damaged(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def rewritten(folder: Path, change: Any) -> Path:
    """Change the tensors of a bank, and what submerge.json says of them."""
    tensors = load_file(folder / "bank.safetensors")
    change(tensors)
    save_file(tensors, folder / "bank.safetensors")
    manifest = json.loads((folder / "submerge.json").read_text())
    line = next(iter(manifest["bank"]["tensors"].values()))
    manifest["bank"]["tensors"] = {name: {**line, "shape": list(x.shape)} for name, x in tensors.items()}
    (folder / "submerge.json").write_text(json.dumps(manifest))
    return folder


PROJECTOR = "modules.0.multi_modal_projector.linear_1.weight"
LEFT = "streams.0.model.layers.0.mlp.up_proj.weight.left"


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (
            lambda x: x.pop(PROJECTOR),
            ["modality image", "lacks parameters", "projector.linear_1"],
        ),
        (lambda x: x.pop(LEFT), ["model.layers.0.mlp.up_proj.weight lacks some of its factors"]),
        (lambda x: x.update({"streams.1.w.values": x[LEFT].clone()}), ["'streams.1.w.values' is no tensor"]),
        (lambda x: x.update({"tasks.0.w.left": x[LEFT].clone()}), ["'tasks.0.w.left' is no tensor"]),
        (lambda x: x.update({"streams.0.model.w.values": x[LEFT].clone()}), ["no parameters", "model.w"]),
        (lambda x: x.update({PROJECTOR: x[PROJECTOR][:3].clone()}), ["modality image", "cannot be made"]),
    ],
)
def test_a_damaged_bank_is_told(damaged: Path, change: Any, parts: list[str]) -> None:
    refusal(lambda: submerge.load(rewritten(damaged, change)), *parts)


def test_a_damaged_folder_is_told(damaged: Path) -> None:
    refusal(lambda: submerge.load(damaged, select="top1"), "no settings: select")
    config = damaged / "modalities" / "image" / "config.json"
    content = json.loads(config.read_text())
    del content["text_config"]
    config.write_text(json.dumps(content))
    refusal(lambda: submerge.load(damaged), "modality image", "cannot be made", "config.json")
    config.unlink()
    refusal(lambda: submerge.load(damaged), "modality image", "cannot be made", "config.json")
    manifest = json.loads((damaged / "submerge.json").read_text())
    del manifest["gate"]["tasks"][0]["placeholder_id"]
    (damaged / "submerge.json").write_text(json.dumps(manifest))
    refusal(lambda: submerge.load(damaged), "the placeholder of image is not said")
    bank = damaged / "bank.safetensors"
    bank.write_bytes(bank.read_bytes()[:-100])
    manifest["gate"]["tasks"][0]["placeholder_id"] = IMAGE
    (damaged / "submerge.json").write_text(json.dumps(manifest))
    refusal(lambda: submerge.load(damaged), "truncated")
