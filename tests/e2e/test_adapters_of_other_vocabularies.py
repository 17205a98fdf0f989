"""Adapters that were trained with tokens of their own, as PEFT saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import submerge
from _models import ROOM
from _vocabularies import CHATML, bpe_tokenizer, language_model, perturbed_model
from submerge.store import FileTable, trained_adapter

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT's, of embeddings that it saves

TRAINED: dict[str, dict[str, Any]] = {
    "resized": {},
    "trained, resized": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "trained as one": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "rows": {"trainable_token_indices": {"embed_tokens": [7, 20]}},
    "rows, resized": {"trainable_token_indices": {"embed_tokens": [301, 7, 300]}},
    "low rank": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    "embedding alone": {"target_modules": ["q_proj", "embed_tokens"]},
    "dora": {"target_modules": ["q_proj", "embed_tokens"], "use_dora": True},
}
WHOLE = [kind for kind in TRAINED if kind not in ("embedding alone", "dora")]
"""The kinds that PEFT saves with all rows of the new tokens, also where the head is not tied."""


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
    if tied:  # one parameter is not trained as two
        trained_as_two = "modules_to_save" if kind == "trained, resized" else "target_modules"
        keys[trained_as_two] = [name for name in keys[trained_as_two] if name != "lm_head"]
    adapted = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, init_lora_weights=False, **keys))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    adapted.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {name: tensor.clone() for name, tensor in adapted.merge_and_unload().state_dict().items()}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", WHOLE)
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
    out = submerge.merge(recipe, tmp_path / "out", settings=ROOM).out
    assert submerge.verify(out).problems == []
    for name, tensor in load_file(out / "model.safetensors").items():
        own = wanted[name]
        torch.testing.assert_close(tensor[: len(own)], own, rtol=0, atol=1e-6)
        assert len(tensor) == len(own) or (kind == "rows" and len(tensor) == len(own) + 2)


def resized(folder: Path, base: Path) -> Path:
    """Write the base with rows for ChatML's tokens, which are others than an adapter was trained on."""
    model = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(11)
    model.resize_token_embeddings(302, mean_resizing=False)
    model.save_pretrained(folder)
    bpe_tokenizer(CHATML).save_pretrained(folder)
    return folder


def on(base: Path, adapter: Path, **more: Any) -> dict[str, Any]:
    """Return a recipe of an adapter on a base."""
    models = [{"model": f"{base}+{adapter}", "parameters": {"weight": 1.0}}]
    return {"merge_method": "task_arithmetic", "base_model": str(base), "models": models, **more}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["low rank", "rows, resized"])
def test_the_table_that_an_adapter_saved_counts_and_not_that_of_a_base_resized_anew(
    tmp_path: Path, kind: str, tied: bool
) -> None:
    base = language_model(tmp_path / "base", "llama", bpe_tokenizer(), tied=tied)
    wanted = trained(tmp_path / "adapter", base, kind, tied=tied)
    recipe = on(resized(tmp_path / "resized", base), tmp_path / "adapter")
    report = submerge.merge(recipe, tmp_path / "out", settings=ROOM)
    found = load_file(report.out / "model.safetensors")
    assert ("lm_head.weight" in found) is not tied
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=0, atol=1e-6)
    one_of_two = [text for text in report.warnings if "ties lm_head.weight to it" in text]
    assert len(one_of_two) == (tied and kind == "low rank")


@pytest.mark.parametrize("kind", ["low rank", "rows, resized"])
def test_a_pass_over_data_runs_with_the_table_that_an_adapter_saved(tmp_path: Path, kind: str) -> None:
    base = language_model(tmp_path / "base", "llama", bpe_tokenizer())
    wanted = trained(tmp_path / "adapter", base, kind, tied=False)
    plan = submerge.plan(on(resized(tmp_path / "resized", base), tmp_path / "adapter"), ROOM)
    adapter = trained_adapter(plan.models[-1])
    assert adapter is not None
    name = "model.embed_tokens.weight"
    with FileTable() as table:
        values = adapter.tensor(name, table)
    torch.testing.assert_close(values, wanted[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("tied", [False, True])
def test_a_table_that_an_adapter_saved_as_the_base_has_it_stays_an_update(tmp_path: Path, tied: bool) -> None:
    """The base may have the same values in another type."""
    base = language_model(tmp_path / "base", "llama", bpe_tokenizer(), tied=tied, dtype="bfloat16")
    trained(tmp_path / "adapter", base, "low rank", tied=tied)
    again = resized(tmp_path / "resized", base)
    saved = load_file(tmp_path / "adapter/adapter_model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(again)
    with torch.no_grad():
        for module, weight in (("model.embed_tokens", model.model.embed_tokens), ("lm_head", model.lm_head)):
            if (table := saved.get(f"base_model.model.{module}.base_layer.weight")) is not None:
                weight.weight.copy_(table)
    model.float().save_pretrained(again)
    plan = submerge.plan(on(again, tmp_path / "adapter"), ROOM)
    adapter = plan.models[-1].adapter
    assert adapter is not None
    assert "model.embed_tokens.weight" in adapter.parts
    assert not adapter.folded


def test_rows_that_an_adapter_does_not_hold_are_asked_for(tmp_path: Path) -> None:
    base = language_model(tmp_path / "base", "llama", bpe_tokenizer())
    union = {"tokenizer_source": "union"}
    for kind, message in (
        ("embedding alone", r"no rows of lm_head.weight for token 300 — its adapter was saved without"),
        ("dora", r"has \[300, 16\] — give the base of 302 rows that it was trained on"),
    ):
        trained(tmp_path / kind, base, kind, tied=False)
        with pytest.raises(submerge.RequestError, match=message):
            submerge.plan(on(base, tmp_path / kind, **union), ROOM)
    with pytest.raises(submerge.RequestError, match="trained by DoRA on other values than the base's"):
        submerge.plan(on(resized(tmp_path / "resized", base), tmp_path / "dora"), ROOM)
    adapter = tmp_path / "without tables"
    trained(adapter, base, "low rank", tied=False)
    file = adapter / "adapter_model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if "base_layer" not in k}, file)
    with pytest.raises(submerge.RequestError, match="give the base of 302 rows that it was trained on"):
        submerge.plan(on(base, adapter, **union), ROOM)
