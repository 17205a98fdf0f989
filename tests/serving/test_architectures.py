"""Architectures of every kind: at full rank a named task is the fine-tune itself, also in mixed batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import submerge
from _models import ROOM, TEXT, VISION, quiet_transformers

pytest.importorskip("transformers")

SMALL = {**TEXT, "hidden_size": 32}
NO_GROUPS = {k: v for k, v in SMALL.items() if k != "num_key_value_heads"}
SEEN = {**VISION, "hidden_size": 32}
IDS = {"input_ids": torch.randint(5, 60, (6, 7), generator=torch.Generator().manual_seed(0))}
IMAGES = {"pixel_values": torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))}
LABELS = (2, 5, 1)


def classes(
    base: str, tuned: str, config: str, options: dict[str, Any]
) -> Callable[[Any], tuple[Any, list[Any]]]:
    """Return what makes a base without a head, and three fine-tunes with heads of several widths."""

    def make(t: Any) -> tuple[Any, list[Any]]:
        kind = getattr(t, config)
        model = getattr(t, base)(kind(**options))
        models = [getattr(t, tuned)(kind(**options, num_labels=n)) for n in LABELS]
        for one in models:
            one.base_model.load_state_dict(model.state_dict(), strict=False)
        return model, models

    return make


def whole(kind: str, config: str, options: dict[str, Any]) -> Callable[[Any], tuple[Any, list[Any]]]:
    """Return what makes a base with its head, and three fine-tunes of it."""

    def make(t: Any) -> tuple[Any, list[Any]]:
        model = getattr(t, kind)(getattr(t, config)(**options))
        models = [getattr(t, kind)(getattr(t, config)(**options)) for _ in LABELS]
        for one in models:
            one.load_state_dict(model.state_dict())
        return model, models

    return make


def _clip(t: Any) -> tuple[Any, list[Any]]:
    """Return a CLIP with both towers, and classifiers on its vision tower."""
    text = {**NO_GROUPS, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    parts = {"text_config": text, "vision_config": SEEN, "projection_dim": 8}
    base = t.CLIPModel(t.CLIPConfig(**parts))
    models = [t.CLIPForImageClassification(t.CLIPConfig(**parts, num_labels=n)) for n in LABELS]
    for one in models:
        one.load_state_dict(base.state_dict(), strict=False)
    return base, models


GPT = {
    "vocab_size": 64,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 32,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
DISTIL = {
    "vocab_size": 64,
    "dim": 32,
    "n_layers": 2,
    "n_heads": 2,
    "hidden_dim": 48,
    "max_position_embeddings": 32,
}
T5 = {
    "vocab_size": 64,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
KINDS: dict[str, tuple[Callable[[Any], tuple[Any, list[Any]]], dict[str, torch.Tensor]]] = {
    "roberta": (
        classes(
            "RobertaModel",
            "RobertaForSequenceClassification",
            "RobertaConfig",
            {**NO_GROUPS, "pad_token_id": 1},
        ),
        IDS,
    ),
    "distilbert": (
        classes("DistilBertModel", "DistilBertForSequenceClassification", "DistilBertConfig", DISTIL),
        IDS,
    ),
    "vit": (classes("ViTModel", "ViTForImageClassification", "ViTConfig", SEEN), IMAGES),
    "clip": (_clip, IMAGES),
    "decoder with a classifier": (
        classes("LlamaModel", "LlamaForSequenceClassification", "LlamaConfig", {**SMALL, "pad_token_id": 0}),
        IDS,
    ),
    "tagger": (classes("BertModel", "BertForTokenClassification", "BertConfig", NO_GROUPS), IDS),
    "gpt2": (whole("GPT2LMHeadModel", "GPT2Config", GPT), IDS),
    "untied decoder": (
        whole("LlamaForCausalLM", "LlamaConfig", {**SMALL, "tie_word_embeddings": False}),
        IDS,
    ),
    "t5": (
        whole("T5ForConditionalGeneration", "T5Config", T5),
        {**IDS, "decoder_input_ids": IDS["input_ids"][:, :3]},
    ),
    "convolutions": (
        whole(
            "ResNetForImageClassification",
            "ResNetConfig",
            {
                "embedding_size": 8,
                "hidden_sizes": [8, 16],
                "depths": [1, 1],
                "num_labels": 3,
                "layer_type": "basic",
            },
        ),
        IMAGES,
    ),
}
FROZEN = {"t5": "relative_attention_bias"}


def made(kind: str, root: Path) -> tuple[Path, list[Any]]:
    """Write the base, fine-tunes that were moved at random, and their merge at full rank."""
    torch.manual_seed(0)
    base, models = KINDS[kind][0](quiet_transformers())
    base.save_pretrained(root / "base")
    for number, model in enumerate(models):
        draw = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                if tensor.is_floating_point() and FROZEN.get(kind, "nothing") not in name:
                    change = 0.1 * torch.randn(tensor.shape, generator=draw)
                    tensor.add_(change.abs() if "running_var" in name else change)
        model.eval().save_pretrained(root / f"task{number}")
    recipe = {
        "merge_method": "mass",
        "base_model": str(root / "base"),
        "models": [{"model": str(root / f"task{i}")} for i in range(len(models))],
        "parameters": {"rank": 1000},
    }
    return submerge.merge(recipe, root / "out", settings=ROOM).out, models


@pytest.mark.parametrize("kind", KINDS)
def test_a_named_task_is_the_fine_tune(kind: str, tmp_path: Path) -> None:
    out, models = made(kind, tmp_path)
    model = submerge.load(out)
    inputs = KINDS[kind][1]
    names = [f"task{(7 * i) % 3}" for i in range(6)]
    found = model(**inputs, task=names)
    assert not model.controller.gated.sequential, "one batch, whatever it mixes"
    for row, name in enumerate(names):
        with torch.no_grad():
            wanted = models[int(name[-1])](**{k: v[row : row + 1] for k, v in inputs.items()}).logits[0]
        width = wanted.shape[-1]
        assert (found.logits[row][..., :width] - wanted).abs().max() < 1e-4
        assert found.logits[row][..., width:].eq(-torch.inf).all()
    if kind != "convolutions":  # which have no linear map in a layer to look at
        routed = model(**inputs)
        assert set(routed.tasks) <= set(model.router.names)
        if kind == "tagger":
            assert [len(row) for row in found.labels if row] == [7] * 4, "a name for each token"
        again = model(**inputs, task=routed.tasks)
        assert (routed.logits - again.logits).nan_to_num(0).abs().max() < 1e-4


@pytest.mark.parametrize("kind", ["vit", "roberta", "distilbert"])
def test_features_are_those_of_the_fine_tune(kind: str, tmp_path: Path) -> None:
    out, models = made(kind, tmp_path)
    inputs = KINDS[kind][1]
    model = submerge.load(out, features=True)
    for number, tuned in enumerate(models):
        with torch.no_grad():
            wanted = tuned.base_model(**inputs).last_hidden_state
        found = model(**inputs, task=f"task{number}").last_hidden_state
        assert (found - wanted).abs().max() < 1e-4


def test_a_model_that_shows_the_router_nothing_is_told(tmp_path: Path) -> None:
    out, _ = made("convolutions", tmp_path)
    with pytest.raises(submerge.RequestError, match="no input of the model is named by routing_layers"):
        submerge.load(out)(**IMAGES)


def test_heads_of_several_modules_do_not_compete(tmp_path: Path) -> None:
    out, _ = made("distilbert", tmp_path)
    with pytest.raises(submerge.RequestError, match="needs heads that are one module"):
        submerge.load(out, heads="max")


def test_adapters_are_tasks(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    t = quiet_transformers()
    torch.manual_seed(0)
    base = t.BertModel(t.BertConfig(**NO_GROUPS))
    base.save_pretrained(tmp_path / "base")
    models = []
    for number, labels in enumerate(LABELS):
        whole_model = t.BertForSequenceClassification(t.BertConfig(**NO_GROUPS, num_labels=labels))
        whole_model.bert.load_state_dict(base.state_dict())
        config = peft.LoraConfig(r=2 + number, target_modules=["query", "value"], task_type="SEQ_CLS")
        adapted = peft.get_peft_model(whole_model, config)
        draw = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_" in name:
                    parameter.copy_(0.2 * torch.randn(parameter.shape, generator=draw))
        adapted.save_pretrained(str(tmp_path / f"task{number}"))
        models.append(adapted.merge_and_unload().eval())
    recipe = {
        "merge_method": "mass",
        "base_model": str(tmp_path / "base"),
        "models": [{"model": str(tmp_path / f"task{i}")} for i in range(3)],
    }
    out = submerge.merge(recipe, tmp_path / "out", settings=ROOM).out
    model = submerge.load(out)
    names = [f"task{i % 3}" for i in range(6)]
    found = model(**IDS, task=names)
    for row, name in enumerate(names):
        with torch.no_grad():
            wanted = models[int(name[-1])](IDS["input_ids"][row : row + 1]).logits[0]
        assert (found.logits[row, : len(wanted)] - wanted).abs().max() < 1e-4
    assert len(model(**IDS).tasks) == 6
    assert model.router.settings["score"] == "leading"
    few = [{"filter": "layer.0.attention.self.query", "value": 2}, {"value": "auto"}]
    for name, rank, score in (("few", few, "leading"), ("cut", 2, "residual")):
        cut = {**recipe, "parameters": {"rank": rank}}
        out = submerge.merge(cut, tmp_path / name, settings=ROOM).out
        assert submerge.load(out).router.settings["score"] == score, "are most updates whole?"
