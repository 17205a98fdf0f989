"""Models of several vocabularies: mergekit's tables, tokenizers that have all tokens, and what is loaded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    Gemma3nForCausalLM,
    Gemma3nTextConfig,
    MarianConfig,
    MarianMTModel,
    PreTrainedTokenizerFast,
)

import submerge
from _models import ROOM, contents, read
from _vocabularies import (
    CHATML,
    FAMILIES,
    TEXTS,
    bpe_tokenizer,
    config_of,
    language_model,
    perturbed_model,
    table,
    vocabulary,
)
from submerge.engine import explain
from submerge.engine.output import _checkpoint_files
from submerge.engine.plan.tokens import _token_rows


@dataclass(frozen=True)
class Zoo:
    """A base, a fine-tune with ChatML's tokens, one without, one with others, and one of other pieces."""

    base: Path
    chat: Path
    plain: Path
    tool: Path
    pieces: Path


def zoo(root: Path, family: str, *, tied: bool, dtype: str = "float32") -> Zoo:
    own = bpe_tokenizer()
    base = language_model(root / "base", family, own, tied=tied, dtype=dtype)
    return Zoo(
        base,
        perturbed_model(root / "chat", base, bpe_tokenizer(CHATML), 1),
        perturbed_model(root / "plain", base, own, 2),
        perturbed_model(root / "tool", base, bpe_tokenizer(("<|tool|>", "<|im_end|>")), 3),
        perturbed_model(root / "pieces", base, bpe_tokenizer(size=290, texts=TEXTS[1:]), 4),
    )


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return zoo(tmp_path_factory.mktemp("llama"), "llama", tied=False)


def entries(*models: Path, **more: float) -> list[dict[str, Any]]:
    return [
        {"model": str(model), "parameters": {"weight": 0.3 + 0.1 * place, **more}}
        for place, model in enumerate(models)
    ]


def methods(models: Zoo) -> dict[str, dict[str, Any]]:
    base = {"base_model": str(models.base)}
    return {
        "linear": {"models": entries(models.chat, models.plain)},
        "ties": {**base, "models": entries(models.chat, models.plain, density=0.6)},
        "slerp": {
            **base,
            "models": [{"model": str(models.base)}, {"model": str(models.chat)}],
            "parameters": {"t": 0.4},
        },
    }


def assert_equal_tables(ours: Path, theirs: Path, tolerance: float = 1e-6) -> None:
    """Tables are compared by their tokens, for with several donors mergekit's ids change from run to run."""
    mine, other = load_file(ours / "model.safetensors"), load_file(theirs / "model.safetensors")
    assert mine.keys() == other.keys()
    here, there = vocabulary(ours), vocabulary(theirs)
    assert here.keys() == there.keys()
    order = [here[text] for text in here], [there[text] for text in here]
    for name, tensor in mine.items():
        assert tensor.shape == other[name].shape
        if name.endswith(("embed_tokens.weight", "lm_head.weight")):
            torch.testing.assert_close(tensor[order[0]], other[name][order[1]], rtol=0, atol=tolerance)
            rest = slice(len(here), None)
            torch.testing.assert_close(tensor[rest], other[name][rest], rtol=0, atol=tolerance)
        else:
            torch.testing.assert_close(tensor, other[name], rtol=0, atol=tolerance)
    assert config_of(ours)["vocab_size"] == config_of(theirs)["vocab_size"]


FORMS = [(family, tied) for family in FAMILIES for tied in (False, True) if tied or family != "gemma"]
"""mergekit has no place for a Gemma's own head."""


@pytest.mark.parametrize(("family", "tied"), FORMS)
def test_a_chat_model_merges_with_one_without_its_tokens(
    tmp_path: Path, run_mergekit: Any, family: str, tied: bool
) -> None:
    models = zoo(tmp_path, family, tied=tied)
    chat, plain = bpe_tokenizer(CHATML), bpe_tokenizer()
    for method, keys in methods(models).items():
        recipe = {"merge_method": method, **keys, "tokenizer_source": "union", "dtype": "float32"}
        out = submerge.merge(recipe, tmp_path / method, settings=ROOM).out
        assert_equal_tables(out, run_mergekit(recipe, tmp_path / f"{method}-mergekit"))
        assert submerge.verify(out).problems == []
        tokenizer = PreTrainedTokenizerFast.from_pretrained(out)
        ids = tokenizer.get_vocab()
        for own in (chat, plain):
            for text, id_ in own.get_vocab().items():
                assert ids[text] == id_, "none of the base's moves, and chat has them behind those"
            for text in TEXTS:
                assert tokenizer.decode(tokenizer(text).input_ids) == text
        prompt = "<|im_start|>user\nthe fox<|im_end|>"
        assert tokenizer(prompt).input_ids == chat(prompt).input_ids
        assert tokenizer.decode(tokenizer(prompt).input_ids) == prompt
        for name in ("input", "output"):
            merged, owner = table(out, name), table(models.chat, name)
            for text in CHATML:
                # slerp weights all of a table alike, and by an angle between the two: s_0 + s_1 > 1
                scale = float(merged[text].norm() / owner[text].norm()) if method == "slerp" else 1.0
                assert 1 <= scale < 1.3
                torch.testing.assert_close(merged[text], owner[text] * scale, rtol=0, atol=1e-6)


def test_logits_of_shared_tokens_are_those_of_the_merge_without_the_new_ones(
    tmp_path: Path, llama: Zoo
) -> None:
    """New rows change no other logit: linear, with the rows for new tokens cut off."""
    keys = {"merge_method": "linear", "models": entries(llama.chat, llama.plain), "parameters": {}}
    united = submerge.merge({**keys, "tokenizer_source": "union"}, tmp_path / "union", settings=ROOM).out
    cut = submerge.merge({**keys, "tokenizer_source": str(llama.plain)}, tmp_path / "cut", settings=ROOM).out
    tokens = PreTrainedTokenizerFast.from_pretrained(cut)(TEXTS[0], return_tensors="pt").input_ids
    with torch.no_grad():
        full = AutoModelForCausalLM.from_pretrained(united)(tokens).logits
        short = AutoModelForCausalLM.from_pretrained(cut)(tokens).logits
    assert full.shape[-1] == short.shape[-1] + 2
    torch.testing.assert_close(full[..., : short.shape[-1]], short)


def cases(models: Zoo, root: Path) -> dict[str, dict[str, Any]]:
    linear = {"merge_method": "linear"}
    updates = {"merge_method": "task_arithmetic", "base_model": str(models.base)}
    three = entries(models.chat, models.plain, models.tool)
    outside = root / "outside"
    bpe_tokenizer(("<|im_start|>", "<|new|>", "<|im_end|>")).save_pretrained(outside)
    config = config_of(models.base) | {"vocab_size": 303}
    (outside / "config.json").write_text(json.dumps(config))
    the_row = {"kind": "model_token", "model": str(models.plain), "token": "Ġth"}
    tokens = {
        "<|im_start|>": {"source": str(models.chat)},
        "<|im_end|>": {"source": str(models.tool), "force": True},
        "<|tool|>": {"source": {**the_row, "token": "Ġthe"}, "force": True},
        "<|brand|>": {"source": {"kind": "model_token", "model": str(models.plain), "token_id": 5}},
        "<|zero|>": {"source": {"kind": "zero"}},
        "Ġthe": {"source": {"kind": "zero"}, "force": True},
    }
    return {
        "the base has the say": {**updates, "models": three, "tokenizer_source": "union"},
        "the mean of those that have it": {**linear, "models": three, "tokenizer_source": "union"},
        "the base's tokens": {**updates, "models": three, "tokenizer_source": "base"},
        "a model's tokens": {**linear, "models": three, "tokenizer_source": str(models.tool)},
        "an outsider's tokens": {**updates, "models": three, "tokenizer_source": str(outside)},
        "other pieces": {
            **linear,
            "models": entries(models.plain, models.pieces),
            "tokenizer_source": "union",
        },
        "without other pieces": {
            **updates,
            "models": entries(models.pieces),
            "tokenizer": {"source": "base"},
        },
        "padded": {**updates, "models": three, "tokenizer": {"pad_to_multiple_of": 64}},
        "padded alike": {
            **updates,
            "models": entries(models.plain),
            "tokenizer": {"source": "base", "pad_to_multiple_of": 64},
        },
        "rules": {**updates, "models": three, "tokenizer": {"tokens": tokens}},
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tables_are_mergekits(tmp_path: Path, run_mergekit: Any, dtype: str) -> None:
    models = zoo(tmp_path, "llama", tied=False, dtype=dtype)
    for name, recipe in cases(models, tmp_path).items():
        out = submerge.merge(recipe, tmp_path / name, settings=ROOM).out
        # half of mergekit's arithmetic is in the type of the models
        tolerance = 1e-6 if dtype == "float32" else 2**-7
        assert_equal_tables(out, run_mergekit(recipe, tmp_path / f"{name}-mergekit"), tolerance)
        assert submerge.verify(out).problems == []


def test_equal_vocabularies_cost_nothing(tmp_path: Path, llama: Zoo) -> None:
    keys = {"merge_method": "linear", "models": entries(llama.base, llama.plain)}
    one = submerge.merge(keys, tmp_path / "one", settings=ROOM).out
    for source in ("union", str(llama.plain)):
        other = submerge.merge({**keys, "tokenizer_source": source}, tmp_path / "other", settings=ROOM).out
        for name in ("model.safetensors", "config.json", "tokenizer.json"):
            assert contents(other)[name] == contents(one)[name]
        for path in other.iterdir():
            path.unlink()
        other.rmdir()


OF_BERT = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
OF_MARIAN = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "pad_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
OF_GEMMA = {
    **OF_BERT,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "hidden_size_per_layer_input": 4,
    "laurel_rank": 4,
    "altup_num_inputs": 2,
    "num_kv_shared_layers": 0,
    "layer_types": ["full_attention"],
    "activation_sparsity_pattern": [0.0],
}


def masked_bert(rows: int) -> Any:
    return BertForMaskedLM(BertConfig(vocab_size=rows, **OF_BERT))


def marian(rows: int) -> Any:
    return MarianMTModel(MarianConfig(vocab_size=rows, **OF_MARIAN))


def gemma_3n(rows: int) -> Any:
    config = Gemma3nTextConfig(vocab_size=rows, vocab_size_per_layer_input=rows, **OF_GEMMA)
    return Gemma3nForCausalLM(config)


def drawn(model: Any, seed: int) -> Any:
    """Return a model after all of its values were drawn anew, those of biases in buffers, too."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape, generator=draw) * 0.1 if tensor.is_floating_point() else 0)
    return model


@pytest.mark.parametrize("kind", [masked_bert, marian, gemma_3n])
def test_all_that_has_a_value_for_each_token_gets_one_for_new_ones(tmp_path: Path, kind: Any) -> None:
    """Biases of heads that are tied to the embeddings, biases of logits, and second tables."""
    models = {"plain": bpe_tokenizer(), "chat": bpe_tokenizer(CHATML)}
    for seed, (name, tokenizer) in enumerate(models.items()):
        model = drawn(kind(len(tokenizer)), seed)
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    keys = {"merge_method": "linear", "models": entries(tmp_path / "plain", tmp_path / "chat")}
    out = submerge.merge({**keys, "tokenizer_source": "union"}, tmp_path / "out", settings=ROOM).out
    assert submerge.verify(out).problems == []
    _, told = type(model).from_pretrained(out, output_loading_info=True)
    assert not any(told.values())
    plain, chat = read(tmp_path / "plain"), read(tmp_path / "chat")
    for name, tensor in read(out).items():
        wanted, common = chat[name], tuple(map(slice, plain[name].shape))
        wanted[common] = (0.3 * plain[name] + 0.4 * wanted[common]) / 0.7
        torch.testing.assert_close(tensor, wanted, rtol=0, atol=1e-6)


def test_bytes_do_not_depend_on_threads_nor_on_a_break(
    tmp_path: Path, llama: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {
        "merge_method": "ties",
        "base_model": str(llama.base),
        "models": entries(llama.chat, llama.tool, density=0.5),
        "tokenizer": {"source": "union", "pad_to_multiple_of": 64},
    }
    one, two = (
        submerge.merge(recipe, tmp_path / str(n) / "out", settings=submerge.Settings(threads=n)).out
        for n in (1, 2)
    )
    assert contents(one) == contents(two)
    with monkeypatch.context() as broken:

        def refuse(*_: object) -> None:
            raise OSError(28, "no space left")

        broken.setattr(_checkpoint_files, "write_vocabulary_files", refuse)
        with pytest.raises(submerge.WorkError):
            submerge.merge(recipe, tmp_path / "3" / "out", settings=ROOM)
    again = submerge.merge(recipe, tmp_path / "3" / "out", settings=ROOM, resume=True)
    assert again.resumed > 0
    assert contents(again.out) == contents(one)
    assert submerge.load_recipe(submerge.load_recipe(recipe).resolved()).tokenizer.pad_to_multiple_of == 64


def test_many_runs_of_rows_are_gathered_to_the_same_values(
    tmp_path: Path, llama: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {
        "merge_method": "linear",
        "models": entries(llama.chat, llama.tool, llama.pieces),
        "tokenizer": {"source": str(llama.pieces), "pad_to_multiple_of": 64},
    }
    one = submerge.merge(recipe, tmp_path / "one", settings=ROOM).out
    monkeypatch.setattr(_token_rows, "_MANY", 1)
    two = submerge.merge(recipe, tmp_path / "two", settings=ROOM).out
    assert contents(one)["model.safetensors"] == contents(two)["model.safetensors"]


def test_ids_follow_their_tokens(tmp_path: Path, llama: Zoo) -> None:
    """A source that numbers tokens otherwise: the configurations name the same tokens as before."""
    source = tmp_path / "source"
    other = bpe_tokenizer(size=290, texts=TEXTS[1:])
    table_of = json.loads(other.backend_tokenizer.to_str())
    vocab, last = table_of["model"]["vocab"], len(other) - 1
    first, final = next(t for t, i in vocab.items() if i == 2), next(t for t, i in vocab.items() if i == last)
    vocab[first], vocab[final] = last, 2
    for token in table_of["added_tokens"]:
        token["id"] = vocab[token["content"]]
    source.mkdir()
    (source / "tokenizer.json").write_text(json.dumps(table_of))
    (llama.base / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 1], "top_k": 2}))
    keys = {"merge_method": "linear", "models": entries(llama.base, llama.plain)}
    out = submerge.merge({**keys, "tokenizer_source": str(source)}, tmp_path / "out", settings=ROOM).out
    assert config_of(out)["eos_token_id"] == last
    assert json.loads((out / "generation_config.json").read_text()) == {"eos_token_id": [last, 1], "top_k": 2}
    assert submerge.verify(out, load=False).sound


def test_ids_of_tokens_that_the_output_lacks_are_those_of_the_tokenizers_model(
    tmp_path: Path, llama: Zoo
) -> None:
    """A padding token that was added to the base alone would be an id without a row."""
    own = bpe_tokenizer(("<|pad|>", "<|stop|>"))
    padded = language_model(tmp_path / "padded", "llama", own, pad_token_id=300, unused_token_id=300)
    generation = {"eos_token_id": [2, 301], "pad_token_id": 300, "suppress_tokens": [300, 5], "top_k": 300}
    (padded / "generation_config.json").write_text(json.dumps(generation))
    keys = {"merge_method": "linear", "models": entries(padded, llama.plain)}
    plan = submerge.plan({**keys, "tokenizer_source": str(llama.plain)}, ROOM)
    assert any("pad_token_id: '<|pad|>'" in warning for warning in plan.warnings)
    out = submerge.merge(plan, tmp_path / "out", settings=ROOM).out
    assert (config_of(out)["pad_token_id"], config_of(out)["unused_token_id"]) == (0, None)
    written = json.loads((out / "generation_config.json").read_text())
    assert written == {"eos_token_id": [2], "pad_token_id": 0, "suppress_tokens": [5], "top_k": 300}
    AutoModelForCausalLM.from_pretrained(out)


def test_a_token_without_a_row_is_no_part_of_a_union(tmp_path: Path, llama: Zoo) -> None:
    """It is refused where the tokenizer's source itself has it."""
    more = bpe_tokenizer((*CHATML, "<|late|>"))
    late = perturbed_model(tmp_path / "late", llama.base, bpe_tokenizer(CHATML), 5)
    more.save_pretrained(late)
    keys = {"merge_method": "linear", "models": entries(llama.plain, late)}
    plan = submerge.plan({**keys, "tokenizer_source": "union"}, ROOM)
    assert plan.vocabulary[-1].endswith("1 not in the output ('<|late|>')")
    assert f"{late}: 1 token without a row in its tables ('<|late|>'): left out" in plan.warnings
    with pytest.raises(submerge.RequestError, match="beyond the 302 rows"):
        submerge.plan({**keys, "tokenizer_source": str(late)}, ROOM)


def test_a_template_needs_its_tokens_and_a_length_for_all_texts_hides_none(
    tmp_path: Path, llama: Zoo
) -> None:
    keys = {"merge_method": "linear", "models": entries(llama.plain, llama.chat), "chat_template": "chatml"}
    [told] = submerge.plan({**keys, "tokenizer_source": str(llama.plain)}, ROOM).warnings
    assert "the tokenizer lacks '<|im_start|>', '<|im_end|>'" in told
    assert submerge.plan({**keys, "tokenizer_source": "union"}, ROOM).warnings == ()

    own = bpe_tokenizer()
    own.backend_tokenizer.enable_padding(length=16, pad_id=0, pad_token="<pad>")
    own.backend_tokenizer.enable_truncation(4)
    padded = perturbed_model(tmp_path / "padded", llama.base, bpe_tokenizer(), 7)
    own.backend_tokenizer.save(str(padded / "tokenizer.json"))
    keys = {**keys, "models": entries(padded, llama.chat), "tokenizer_source": "union"}
    assert submerge.plan(keys, ROOM).warnings == ()


def test_the_plan_tells_of_the_vocabulary(llama: Zoo) -> None:
    recipe = {
        "merge_method": "linear",
        "models": entries(llama.plain, llama.chat),
        "tokenizer": {"pad_to_multiple_of": 64},
    }
    plan = submerge.plan(recipe, ROOM)
    assert plan.vocabulary == (
        "output: 302 tokens, 320 rows, 18 of them the mean of the others",
        f"{llama.plain}: 300 tokens, lacks 2 of the output's",
        f"{llama.chat}: 302 tokens, brings '<|im_start|>', '<|im_end|>'",
    )
    [told] = explain(plan, "embed_tokens")
    assert told["why"] == "a row for each token (tokenizer source: union)"
    assert told["shape"] == [320, 16]
