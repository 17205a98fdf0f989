"""Adapters that were trained with tokens of their own, as PEFT saves them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

import submerge
from _models import ROOM
from _vocabularies import CHATML, bpe_tokenizer, language_model, perturbed_model, vocabulary
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
    "dora": {"target_modules": ["q_proj", "embed_tokens", "lm_head"], "use_dora": True},
    "dora alone": {"target_modules": ["q_proj", "embed_tokens"], "use_dora": True},
    "head alone": {"target_modules": ["q_proj", "lm_head"]},
    "trained as two": {"modules_to_save": ["embed_tokens", "lm_head"]},
}
PARTLY = ("embedding alone", "dora alone", "head alone")
WHOLE = [kind for kind in TRAINED if kind not in (*PARTLY, "trained as two")]
"""The kinds that PEFT saves with all rows of the new tokens, also where the head is not tied."""


def trained(
    folder: Path, base: Path, kind: str, *, tied: bool, tokens: Sequence[str] = CHATML, seed: int = 5
) -> dict[str, torch.Tensor]:
    """Write an adapter with tokens of its own, or the base's, and return what PEFT makes of the base."""
    torch.manual_seed(seed)
    tokenizer = bpe_tokenizer(() if kind == "rows" else tokens)
    model = AutoModelForCausalLM.from_pretrained(base)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    keys = {"target_modules": ["q_proj"], **TRAINED[kind]}
    if tied and kind != "trained as two":  # one parameter is not trained as two
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
        torch.testing.assert_close(tensor[: len(own)], own, rtol=1e-5, atol=1e-6)
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
        ("embedding alone", "no rows of lm_head.weight for token 300 — its adapter was saved without"),
        ("dora alone", "no rows of lm_head.weight for token 300 — its adapter was saved without"),
        ("head alone", "lm_head.weight has 302 rows, and the embedding that it was saved without has 300"),
    ):
        trained(tmp_path / kind, base, kind, tied=False)
        with pytest.raises(submerge.RequestError, match=message):
            submerge.plan(on(base, tmp_path / kind, **union), ROOM)
    adapter = tmp_path / "without tables"
    trained(adapter, base, "low rank", tied=False)
    file = adapter / "adapter_model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if "base_layer" not in k}, file)
    with pytest.raises(submerge.RequestError, match="give the base of 302 rows that it was trained on"):
        submerge.plan(on(base, adapter, **union), ROOM)


def test_an_adapter_on_the_resized_model_has_the_rows_that_it_did_not_train(tmp_path: Path) -> None:
    """So says the hint for one that was saved without them."""
    base = language_model(tmp_path / "base", "llama", bpe_tokenizer())
    large = resized(tmp_path / "resized", base)
    wanted = trained(tmp_path / "adapter", large, "embedding alone", tied=False)
    models = [{"model": f"{large}+{tmp_path / 'adapter'}", "parameters": {"weight": 1.0}}]
    recipe = {**on(base, tmp_path / "adapter", tokenizer_source="union"), "models": models}
    out = submerge.merge(recipe, tmp_path / "out", settings=ROOM).out
    for name, tensor in load_file(out / "model.safetensors").items():
        torch.testing.assert_close(tensor, wanted[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["low rank", "rows, resized"])
def test_rows_that_no_tokenizer_names_are_told(tmp_path: Path, kind: str) -> None:
    base = language_model(tmp_path / "base", "llama", bpe_tokenizer())
    adapter = tmp_path / "adapter"
    wanted = trained(adapter, base, kind, tied=False)
    for file in adapter.glob("*token*"):
        file.unlink()
    recipe = on(base, adapter, tokenizer_source="union")
    message = "302 rows, 2 more than before, and no tokenizer says of what — save the tokenizer"
    with pytest.raises(submerge.RequestError, match=message):
        submerge.plan(recipe, ROOM)
    bpe_tokenizer(CHATML).save_pretrained(adapter)
    out = submerge.merge(recipe, tmp_path / "out", settings=ROOM).out
    found = load_file(out / "model.safetensors")["model.embed_tokens.weight"]
    torch.testing.assert_close(found, wanted["model.embed_tokens.weight"], rtol=0, atol=1e-6)


def test_a_trained_row_that_is_no_tokens_is_told(tmp_path: Path) -> None:
    base = language_model(tmp_path / "base", "llama", bpe_tokenizer(), rows=304)
    adapter = tmp_path / "adapter"
    trained(adapter, base, "rows, resized", tied=False, tokens=CHATML[:1])
    with pytest.raises(
        submerge.RequestError, match=r"no token of its tokenizer has \(301\) — save the token"
    ):
        submerge.plan(on(base, adapter, tokenizer_source="union"), ROOM)


# --- beside adapters with other tokens ------------------------------------------------------------

OTHERS = ("<|tool|>", CHATML[1])
"""Tokens of another adapter: one of them both add, with two ids."""


def merged_rows(
    name: str, base: torch.Tensor, one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]
) -> torch.Tensor:
    """Return rows of a table, to which adapters add `CHATML` and `OTHERS`.

    They are W_0 + 0.5 (W_1 - W_0) + 0.7 (W_2 - W_0). A row that one adapter alone has is that row, and of one
    that both add W_0 has their mean.
    """
    a, b = one[name], two[name]
    mean = (a[301] + b[301]) / 2
    shared = base + 0.5 * (a[:300] - base) + 0.7 * (b[:300] - base)
    end = mean + 0.5 * (a[301] - mean) + 0.7 * (b[301] - mean)
    return torch.cat([shared, torch.stack([a[300], end, b[300]])])


@pytest.mark.parametrize(("tied", "room"), [(False, True), (True, False)], ids=["room", "tied"])
@pytest.mark.parametrize("kind", ["trained as two", "rows, resized", "low rank", "dora"])
def test_adapters_that_each_added_tokens_are_merged_row_by_row(
    tmp_path: Path, kind: str, tied: bool, room: bool
) -> None:
    """Also where the base has room for new tokens, so that PEFT saves no table."""
    rows = 310 if room else 300
    base = language_model(tmp_path / "base", "llama", bpe_tokenizer(), rows=rows, tied=tied)
    one = trained(tmp_path / "one", base, kind, tied=tied)
    two = trained(tmp_path / "two", base, "low rank", tied=tied, tokens=OTHERS, seed=6)
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": str(base),
        "models": [
            {"model": str(tmp_path / "one"), "parameters": {"weight": 0.5}},
            {"model": str(tmp_path / "two"), "parameters": {"weight": 0.7}},
        ],
        "tokenizer_source": "union",
    }
    out = submerge.merge(recipe, tmp_path / "out", settings=ROOM).out
    assert submerge.verify(out).problems == []
    tokens = vocabulary(out)
    assert [tokens[text] for text in (*CHATML, "<|tool|>")] == [300, 301, 302]
    before = AutoModelForCausalLM.from_pretrained(base).state_dict()
    config = AutoConfig.from_pretrained(base, vocab_size=303, tie_word_embeddings=False)
    wanted = AutoModelForCausalLM.from_config(config)
    wanted.load_state_dict(
        {
            name: merged_rows(name, w[:300], one, two)
            if name in ("model.embed_tokens.weight", "lm_head.weight")
            else w + 0.5 * (one[name] - w) + 0.7 * (two[name] - w)
            for name, w in before.items()
        }
    )
    merged = AutoModelForCausalLM.from_pretrained(out)
    assert merged.config.tie_word_embeddings is (tied and kind != "trained as two")
    ids = torch.tensor([[300, 5, 301, 7, 302, 20, 299]])
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, wanted(ids).logits, rtol=1e-4, atol=1e-5)
    table = merged.get_input_embeddings().weight
    for id_, model in ((300, one), (302, two)):
        torch.testing.assert_close(table[id_], model["model.embed_tokens.weight"][300], rtol=1e-5, atol=1e-6)


def test_trained_rows_of_tokens_that_the_output_lacks_are_left_out(tmp_path: Path) -> None:
    base = language_model(tmp_path / "base", "llama", bpe_tokenizer())
    wanted = trained(tmp_path / "adapter", base, "rows, resized", tied=False)
    recipe = on(base, tmp_path / "adapter", tokenizer_source="base")
    plan = submerge.plan(recipe, ROOM)
    assert plan.tokens is not None
    assert any("2 not in the output" in line for line in plan.tokens.lines)
    found = load_file(submerge.merge(plan, tmp_path / "out").out / "model.safetensors")
    table = found["model.embed_tokens.weight"]
    torch.testing.assert_close(table, wanted["model.embed_tokens.weight"][:300], rtol=0, atol=1e-6)


def test_an_update_of_an_embedding_moves_with_the_rows_of_a_donor(tmp_path: Path) -> None:
    """And rows of new tokens are made of those that were trained."""
    base = language_model(tmp_path / "base", "llama", bpe_tokenizer())
    trained(tmp_path / "adapter", base, "low rank", tied=False, tokens=())
    bpe_tokenizer(("the quick",), size=290).save_pretrained(tmp_path / "donor")
    recipe = on(base, tmp_path / "adapter")
    tokenizer = {"source": str(tmp_path / "donor"), "new_tokens": {"method": "subword"}}
    submerge.merge(recipe, tmp_path / "whole", settings=ROOM)
    of_whole = {
        "merge_method": "passthrough", "models": [{"model": str(tmp_path / "whole")}], "tokenizer": tokenizer
    }  # fmt: skip
    wanted = submerge.merge(of_whole, tmp_path / "wanted", settings=ROOM).out
    found = submerge.merge({**recipe, "tokenizer": tokenizer}, tmp_path / "found", settings=ROOM).out
    tensors = load_file(wanted / "model.safetensors")
    for name, tensor in load_file(found / "model.safetensors").items():
        torch.testing.assert_close(tensor, tensors[name], rtol=0, atol=1e-6)


def test_an_adapter_as_output_has_no_rows_of_other_tokens_at_one_id(tmp_path: Path) -> None:
    """It has no tokenizer, and is added by position."""
    base = language_model(tmp_path / "base", "llama", bpe_tokenizer(), rows=310)
    folders = [tmp_path / name for name in ("one", "two", "alike", "plain")]
    for folder, tokens in zip(folders, (CHATML, OTHERS, CHATML, ()), strict=True):
        trained(folder, base, "low rank", tied=False, tokens=tokens)
    one, two, alike, plain = folders

    def recipe(*adapters: Path, **more: Any) -> dict[str, Any]:
        models = [{"model": str(folder), "parameters": {"weight": 0.5}} for folder in adapters]
        return {"merge_method": "cat", "models": models, "output": {"as": "adapter"}, **more}

    with pytest.raises(submerge.RequestError, match=r"two: the vocabularies differ: 1 token miss"):
        submerge.plan(recipe(one, two, plain), ROOM)
    submerge.plan(recipe(one, alike, plain), ROOM)
    submerge.plan(recipe(one, two, rules={"vocabulary": "by-position"}), ROOM)
    into = recipe(one, two, base_model=str(base), tokenizer_source="union") | {"output": {"as": "checkpoint"}}
    assert submerge.plan(into, ROOM).vocabulary, "what the hint says"


@pytest.mark.parametrize("what", ["adapter", "model"])
def test_what_a_message_about_other_tokens_says_leads_to_a_merge(tmp_path: Path, what: str) -> None:
    base = language_model(tmp_path / "base", "llama", bpe_tokenizer())
    if what == "adapter":
        trained(tmp_path / what, base, "low rank", tied=False)
    else:
        perturbed_model(tmp_path / what, base, bpe_tokenizer(CHATML), 9)
    models = [{"model": str(tmp_path / what), "parameters": {"weight": 1.0}}]
    recipe = {"merge_method": "task_arithmetic", "base_model": str(base), "models": models}
    with pytest.raises(submerge.RequestError) as caught:
        submerge.plan(recipe, ROOM)
    told = str(caught.value)
    if what == "adapter":
        assert "tokenizer_source: union" in told
        assert "rules: {shape: base, vocabulary: by-position} to leave the adapter's rows out" in told
        rules = {"shape": "base", "vocabulary": "by-position"}
        assert submerge.plan({**recipe, "rules": rules}, ROOM).warnings
        assert submerge.plan({**recipe, "tokenizer_source": "union"}, ROOM).vocabulary
    else:
        assert f"tokenizer_source: {tmp_path / what} takes its tokenizer, which has all of these" in told
        assert "resize" not in told, "the rows of its tokens are its own"
        assert submerge.plan({**recipe, "tokenizer_source": str(tmp_path / what)}, ROOM).vocabulary


def _seq2seq(folder: Path, base: Path, **options: Any) -> dict[str, torch.Tensor]:
    """Write an adapter of a T5 with two tokens more, and return what PEFT makes of the base."""
    torch.manual_seed(3)
    model = AutoModelForSeq2SeqLM.from_pretrained(base)
    tokenizer = bpe_tokenizer(CHATML)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    keys = {"r": 2, "target_modules": ["q"], "init_lora_weights": False, **options}
    adapted = get_peft_model(model, LoraConfig(**keys))
    adapted.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {name: tensor.clone() for name, tensor in adapted.merge_and_unload().state_dict().items()}


def test_a_copy_of_a_shared_table_is_refused_with_what_to_do(tmp_path: Path) -> None:
    """PEFT trains with `modules_to_save: [shared]` what a T5's encoder and decoder do not use."""
    torch.manual_seed(0)
    base, tokenizer = tmp_path / "base", bpe_tokenizer()
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
    config = AutoConfig.for_model("t5", vocab_size=len(tokenizer), decoder_start_token_id=0, **sizes)
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(base)
    tokenizer.save_pretrained(base)
    _seq2seq(tmp_path / "copy", base, modules_to_save=["shared"])
    recipe = {"merge_method": "task_arithmetic", "base_model": str(base), "parameters": {"weight": 1}}
    union = {"tokenizer_source": "union"}
    with pytest.raises(submerge.RequestError, match=r"a copy of shared.weight.*without shared in modules"):
        submerge.plan({**recipe, **union, "models": [str(tmp_path / "copy")]}, ROOM)
    rules = {"rules": {"shape": "base", "vocabulary": "by-position"}}
    left = submerge.merge(
        {**recipe, **rules, "models": [str(tmp_path / "copy")]}, tmp_path / "left", settings=ROOM
    )
    assert any("shared.weight" in warning and "as it is" in warning for warning in left.warnings)
    before = AutoModelForSeq2SeqLM.from_pretrained(base).state_dict()
    after = AutoModelForSeq2SeqLM.from_pretrained(left.out).state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before if ".q." not in name)

    expected = _seq2seq(tmp_path / "plain", base)
    submerge.merge({**recipe, **union, "models": [str(tmp_path / "plain")]}, tmp_path / "out", settings=ROOM)
    found = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out").state_dict()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor)
