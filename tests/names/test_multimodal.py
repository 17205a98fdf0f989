"""The projector of a multimodal model is found by names and shapes, in files and in models."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from _models import quiet_transformers
from submerge.names import empty_model, multimodal_parts, projector_of

pytest.importorskip("transformers")
TOWER = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
TEXT = {**TOWER, "num_key_value_heads": 1, "vocab_size": 32, "model_type": "llama"}
VISION = {**TOWER, "model_type": "clip_vision_model", "image_size": 8, "patch_size": 4}
AUDIO = {
    "d_model": 8,
    "encoder_layers": 1,
    "encoder_attention_heads": 1,
    "encoder_ffn_dim": 8,
    "num_mel_bins": 4,
}
KINDS: dict[str, tuple[dict[str, Any], str]] = {
    "LlavaForConditionalGeneration": ({"vision_config": VISION}, "vision_tower"),
    "LlavaNextForConditionalGeneration": ({"vision_config": VISION}, "vision_tower"),
    "Qwen2AudioForConditionalGeneration": ({"audio_config": AUDIO}, "audio_tower"),
}


def shapes(kind: str, **config: Any) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a model's state."""
    quiet_transformers()
    model = empty_model({"architectures": [kind], **config})
    assert model is not None
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_between_an_encoder_and_a_language_model(kind: str) -> None:
    config, encoder = KINDS[kind]
    of_model = shapes(kind, text_config=TEXT, **config)
    parts = multimodal_parts(of_model)
    assert parts is not None
    assert (parts.encoders, parts.projector) == ((f"model.{encoder}",), "model.multi_modal_projector")
    assert parts.in_projector(f"{parts.projector}.bias")
    assert not parts.in_encoder(f"{parts.projector}.bias")
    without_head = {name.removeprefix("model."): shape for name, shape in of_model.items()}
    assert projector_of(without_head) == "multi_modal_projector"


def test_a_language_model_that_is_not_in_a_module_of_its_own() -> None:
    language = shapes("LlamaForCausalLM", **TEXT)
    own = {"model.vision_tower.blocks.0.up.weight": (8, 8), "model.mm_projector.weight": (8, 8)}
    assert projector_of({**language, **own}) == "model.mm_projector"
    assert projector_of({**language, **own, "model.image_newline": (8,)}) == "model.mm_projector"
    assert projector_of({**language, **own, "model.other.weight": (8, 8)}) is None


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("LlamaForCausalLM", TEXT),
        ("BertForSequenceClassification", {**TEXT, "model_type": "bert"}),
        ("BertModel", {**TEXT, "model_type": "bert"}),  # as sentence-transformers stores it, without a prefix
        ("RobertaModel", {**TEXT, "model_type": "roberta"}),
        ("MPNetModel", {**TEXT, "model_type": "mpnet"}),
        ("ElectraModel", {**TEXT, "model_type": "electra", "embedding_size": 4}),
        ("CLIPModel", {"text_config": {**TOWER, "vocab_size": 32}, "vision_config": VISION}),
        ("T5ForConditionalGeneration", {"d_model": 8, "d_ff": 8, "num_layers": 1, "vocab_size": 32}),
        ("BartModel", {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 32}),
        ("GPT2LMHeadModel", {"n_embd": 8, "n_layer": 1, "n_head": 1, "vocab_size": 32}),
    ],
)
def test_models_without_a_projector(kind: str, config: dict[str, Any]) -> None:
    with torch.device("meta"):
        assert projector_of(shapes(kind, **config)) is None
