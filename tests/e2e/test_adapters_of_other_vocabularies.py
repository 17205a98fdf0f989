"""Adapters that were trained with tokens of their own, as PEFT saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import submerge
from _models import ROOM
from _vocabularies import CHATML, bpe_tokenizer, language_model, perturbed_model

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT's, of embeddings that it saves

TRAINED: dict[str, dict[str, Any]] = {
    "resized": {},
    "trained, resized": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "trained as one": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "rows": {"trainable_token_indices": {"embed_tokens": [7, 20]}},
    "rows, resized": {"trainable_token_indices": {"embed_tokens": [301, 7, 300]}},
    "low rank": {"target_modules": ["q_proj", "embed_tokens"]},
}


def test_rows_that_an_adapter_trained_are_nobody_elses(tmp_path: Path) -> None:
    """Others would have the rows of new tokens from before the training."""
    base = language_model(tmp_path / "base", "llama", bpe_tokenizer())
    chat = perturbed_model(tmp_path / "chat", base, bpe_tokenizer(CHATML), 1)
    adapter = tmp_path / "adapter"
    model = AutoModelForCausalLM.from_pretrained(chat)
    rows = {"embed_tokens": [300, 301]}
    config = LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=rows)
    get_peft_model(model, config).save_pretrained(adapter)
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": str(base),
        "models": [{"model": f"{chat}+{adapter}", "parameters": {"weight": 1.0}}],
        "tokenizer_source": "union",
    }
    with pytest.raises(submerge.RequestError, match="that other models lack"):
        submerge.plan(recipe, ROOM)
    with pytest.raises(submerge.RequestError, match="whose rows are others"):
        submerge.plan({**recipe, "tokenizer_source": "base"}, ROOM)


def trained(folder: Path, base: Path, kind: str, *, tied: bool) -> dict[str, torch.Tensor]:
    """Write an adapter with the tokens of ChatML, or of its base, and return what PEFT makes of the base."""
    torch.manual_seed(5)
    tokenizer = bpe_tokenizer(() if kind == "rows" else CHATML)
    model = AutoModelForCausalLM.from_pretrained(base)
    if kind != "rows":
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    keys = {"target_modules": ["q_proj"], **TRAINED[kind]}
    if tied and kind == "trained, resized":  # one parameter is not trained as two
        keys["modules_to_save"] = ["embed_tokens"]
    adapted = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, init_lora_weights=False, **keys))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    adapted.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {name: tensor.clone() for name, tensor in adapted.merge_and_unload().state_dict().items()}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", TRAINED)
def test_an_adapter_with_tokens_of_its_own(tmp_path: Path, kind: str, tied: bool) -> None:
    base = language_model(tmp_path / "base", "llama", bpe_tokenizer(), tied=tied)
    other = perturbed_model(tmp_path / "other", base, bpe_tokenizer(CHATML), 9)
    wanted = trained(tmp_path / "adapter", base, kind, tied=tied)
    recipe = {
        "merge_method": "linear",
        "models": [
            {"model": f"{base}+{tmp_path / 'adapter'}", "parameters": {"weight": 1.0}},
            {"model": str(other), "parameters": {"weight": 0.0}},
        ],
        "tokenizer_source": "union",
    }
    if kind == "low rank":
        with pytest.raises(submerge.RequestError, match="trained with another vocabulary"):
            submerge.plan(recipe, ROOM)
        return
    out = submerge.merge(recipe, tmp_path / "out", settings=ROOM).out
    assert submerge.verify(out).problems == []
    for name, tensor in load_file(out / "model.safetensors").items():
        own = wanted[name]
        torch.testing.assert_close(tensor[: len(own)], own, rtol=0, atol=1e-6)
        assert len(tensor) == len(own) or (kind == "rows" and len(tensor) == len(own) + 2)
