"""Models whose tokenizers have the tokens of the output's, and cut texts otherwise: said, and only then."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, Unigram, WordLevel

import submerge
from _models import ROOM
from _tokenizers import language_model

TOLD = "its tokenizer cuts texts otherwise than that of"
WORDS = {"<unk>": 0, "<s>": 1, "</s>": 2, "The": 3, "the": 4, "quick": 5, "hello": 6, "Ġhello": 7, "fox": 8}
PAIRS = {
    "<unk>": 0,
    "<s>": 1,
    "</s>": 2,
    **{t: 3 + i for i, t in enumerate("helo")},
    "he": 7,
    "el": 8,
    "hel": 9,
}


def words(**steps: Any) -> Tokenizer:
    """Return a tokenizer of words, with these steps."""
    return _with(Tokenizer(WordLevel(WORDS, unk_token="<unk>")), {"pre_tokenizer": SPACES} | steps)


def pairs(*merges: tuple[str, str], **steps: Any) -> Tokenizer:
    """Return a tokenizer of byte pairs, with these merges."""
    return _with(Tokenizer(BPE(PAIRS, list(merges), unk_token="<unk>")), {"pre_tokenizer": SPACES} | steps)


def pieces(score: float) -> Tokenizer:
    """Return a unigram tokenizer, in which one piece has a score."""
    rows = [
        ("<unk>", 0.0),
        ("h", -2.0),
        ("e", -2.0),
        ("he", score),
        ("l", -2.0),
        ("o", -2.0),
        ("hello", -99.0),
    ]
    return _with(Tokenizer(Unigram(rows, unk_id=0)), {"pre_tokenizer": SPACES})


def _with(tokenizer: Tokenizer, steps: dict[str, Any]) -> Tokenizer:
    for name, step in steps.items():
        if step is not None:
            setattr(tokenizer, name, step)
    return tokenizer


SPACES = pre_tokenizers.WhitespaceSplit()
BOS = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
LLAMA = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
HE, EL = ("h", "e"), ("e", "l")


def told(tmp_path: Path, base_tokenizer: Tokenizer, own: Tokenizer, **configs: dict[str, Any]) -> list[str]:
    """Return what a plan says of two models with these tokenizers, and what their configurations say."""
    for seed, (name, tokenizer) in enumerate((("base", base_tokenizer), ("tuned", own))):
        language_model(tmp_path / name, 16, seed)
        tokenizer.save(str(tmp_path / name / "tokenizer.json"))
        (tmp_path / name / "tokenizer_config.json").write_text(json.dumps(configs.get(name, {})))
    return warnings(tmp_path)


def warnings(tmp_path: Path, **more: Any) -> list[str]:
    recipe = {"merge_method": "task_arithmetic", "base_model": str(tmp_path / "base"), **more}
    recipe["models"] = [{"model": str(tmp_path / "tuned"), "parameters": {"weight": 1}}]
    return [warning for warning in submerge.plan(recipe, ROOM).warnings if TOLD in warning]


UNLIKE: dict[str, tuple[Tokenizer, Tokenizer, str]] = {
    "normalizer": (
        words(normalizer=normalizers.Lowercase()),
        words(),
        "into 'The' 'quick' '<unk>' 'fox' and not 'the' 'quick' '<unk>' 'fox' (normalizer)",
    ),
    "pre_tokenizer": (
        words(pre_tokenizer=BYTES),
        words(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)),
        "'The quick brown fox' into '<unk>' ",
    ),
    "post_processor": (words(), words(post_processor=BOS), "'The quick brown fox' into '<s>' 'The' 'quick' "),
    "merges": (pairs(HE, ("he", "l")), pairs(EL, ("h", "el")), "(merges)"),
    "order of merges": (pairs(HE, EL), pairs(EL, HE), "into 'h' 'el' 'l' 'o' and not 'he' 'l' 'l' 'o'"),
    "scores": (pieces(-9.0), pieces(-1.0), "into … 'he' '<unk>' '<unk>' 'o' … and not … 'h' 'e' "),
    "a rare rule": (
        words(),
        words(normalizer=normalizers.Replace("~", " hello ")),
        "(normalizer)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", UNLIKE)
def test_texts_that_are_cut_otherwise_are_told(tmp_path: Path, kind: str) -> None:
    base, tuned, shown = UNLIKE[kind]
    [warning] = told(tmp_path, base, tuned)
    assert warning.startswith(f"{tmp_path / 'tuned'}: {TOLD} {tmp_path / 'base'}, which the output has: ")
    assert shown in warning


HARMLESS: dict[str, tuple[Tokenizer, Tokenizer]] = {
    "the same": (words(), words()),
    "no step and one that does nothing": (words(), words(normalizer=normalizers.Sequence([]))),
    "older Metaspace": (
        pairs(
            pre_tokenizer=None,
            normalizer=normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
        ),
        pairs(pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="first", split=False)),
    ),
    "a template of one kind or the other": (
        words(post_processor=processors.BertProcessing(("</s>", 2), ("<s>", 1))),
        words(
            post_processor=processors.TemplateProcessing(
                single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
            )
        ),
    ),
    "offsets": (words(post_processor=processors.ByteLevel(trim_offsets=True)), words()),
    "another way to one token": (
        pairs(HE, EL, ("he", "l"), ("h", "el")),
        pairs(HE, EL, ("h", "el"), ("he", "l")),
    ),
}


@pytest.mark.parametrize("kind", HARMLESS)
def test_what_is_written_otherwise_and_cuts_alike_is_not_told(tmp_path: Path, kind: str) -> None:
    assert not told(tmp_path, *HARMLESS[kind])


def test_what_versions_write_otherwise_is_not_told(tmp_path: Path) -> None:
    """Padding and truncation, the order of keys, merges as text, and keys that older versions lack."""
    full = pairs(HE, ("he", "l"), pre_tokenizer=BYTES)
    full.enable_padding(length=8)
    full.enable_truncation(4)
    ours = {"tokenizer_class": "LlamaTokenizerFast", "use_fast": True, "legacy": False, "model_max_length": 9}
    assert not told(tmp_path, full, full, base=ours, tuned={"tokenizer_class": "TokenizersBackend"})
    path = tmp_path / "tuned" / "tokenizer.json"
    table = dict(reversed(json.loads(path.read_text()).items())) | {"padding": None, "truncation": None}
    table["model"]["merges"] = [" ".join(pair) for pair in table["model"]["merges"]]
    del table["model"]["ignore_merges"], table["pre_tokenizer"]["use_regex"]
    path.write_text(json.dumps(table))
    assert not warnings(tmp_path)


@pytest.mark.parametrize(
    ("base", "tuned", "shown"),
    [
        ({"do_lower_case": True}, {"do_lower_case": False}, "do_lower_case False and not True"),
        ({"add_bos_token": False}, {"add_bos_token": True}, "add_bos_token True and not False"),
        ({"add_prefix_space": False}, {"add_prefix_space": True}, "add_prefix_space True and not False"),
        ({}, {"split_special_tokens": True}, "split_special_tokens True and not False"),
        ({"add_bos_token": True}, {}, ""),  # as transformers 5 writes it
        ({"add_prefix_space": None}, {"add_prefix_space": False}, ""),
    ],
)
def test_settings_of_cutting_are_compared(
    tmp_path: Path, base: dict[str, Any], tuned: dict[str, Any], shown: str
) -> None:
    found = told(tmp_path, words(), words(), base=base, tuned=tuned)
    assert bool(found) == bool(shown)
    assert shown in "".join(found)


def test_a_setting_is_compared_with_what_a_file_of_another_form_does(tmp_path: Path) -> None:
    told(tmp_path, words(normalizer=normalizers.Lowercase()), words(), tuned={"do_lower_case": False})
    (tmp_path / "tuned" / "tokenizer.json").unlink()
    (tmp_path / "tuned" / "vocab.txt").write_text("".join(f"{word}\n" for word in WORDS))
    [warning] = warnings(tmp_path)
    assert warning.split(": ")[2].startswith("do_lower_case False and not True")
    (tmp_path / "tuned" / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    assert not warnings(tmp_path)


def test_merges_beside_a_vocabulary_are_compared(tmp_path: Path) -> None:
    told(tmp_path, pairs(HE, ("he", "l")), pairs(HE, ("he", "l")))
    (tmp_path / "tuned" / "tokenizer.json").unlink()
    (tmp_path / "tuned" / "vocab.json").write_text(json.dumps(PAIRS))
    for merges, count in (("h e\nhe l\n", 0), ("e l\nh el\n", 1)):
        (tmp_path / "tuned" / "merges.txt").write_text(f"#version: 0.2\n{merges}")
        assert len(warnings(tmp_path)) == count


def _piece_model(scores: dict[str, float], trained_on: str = "") -> bytes:
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    model = ModelProto()
    for text, score in scores.items():
        model.pieces.add(piece=text, score=score)
    model.trainer_spec.input.append(trained_on)
    return bytes(model.SerializeToString())


def test_a_sentencepiece_model_beside_is_compared_by_what_it_does(tmp_path: Path) -> None:
    told(tmp_path, words(), words())
    for name, scores, text in (("base", {"a": 0.0, "b": -1.0}, "x"), ("tuned", {"a": 0.0, "b": -1.0}, "y")):
        (tmp_path / name / "tokenizer.model").write_bytes(_piece_model(scores, text))
    assert not warnings(tmp_path)
    (tmp_path / "tuned" / "tokenizer.model").write_bytes(_piece_model({"a": 0.0, "b": -7.0}))
    [warning] = warnings(tmp_path)
    assert "other pieces or rules in tokenizer.model" in warning


def test_flags_of_added_tokens_are_compared_by_what_they_do(tmp_path: Path) -> None:
    def tokenizer(steps: pre_tokenizers.PreTokenizer, strips: bool) -> Tokenizer:
        own = words(pre_tokenizer=steps)
        own.add_tokens([AddedToken("<x>", rstrip=strips)])
        return own

    assert not told(tmp_path, tokenizer(SPACES, True), tokenizer(SPACES, False)), "nothing is left to strip"
    [warning] = told(tmp_path, tokenizer(BYTES, True), tokenizer(BYTES, False))
    assert "'the <x> fox' into … '<unk>' and not … 'fox' (added tokens)" in warning


def test_the_tokenizer_that_is_taken_counts(tmp_path: Path) -> None:
    """With the model's own there is nothing to tell; with a donor's all is cut otherwise, as is asked for."""
    told(tmp_path, words(normalizer=normalizers.Lowercase()), words())
    assert len(warnings(tmp_path, tokenizer_source="union")) == 1
    assert not warnings(tmp_path, tokenizer_source=str(tmp_path / "tuned"))
    donor = {"source": str(tmp_path / "tuned"), "new_tokens": "mean"}
    assert not warnings(tmp_path, tokenizer=donor)


def test_adapters_that_are_merged_into_one_are_compared(tmp_path: Path) -> None:
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]}
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    for name, tokenizer in (("one", words(normalizer=normalizers.Lowercase())), ("two", words())):
        (tmp_path / name).mkdir()
        factors = {f"{module}.lora_A.weight": torch.ones(2, 4), f"{module}.lora_B.weight": torch.ones(4, 2)}
        save_file(factors, tmp_path / name / "adapter_model.safetensors")
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(config))
        tokenizer.save(str(tmp_path / name / "tokenizer.json"))
    recipe: dict[str, Any] = {
        "merge_method": "task_arithmetic",
        "models": [{"model": str(tmp_path / name), "parameters": {"weight": 1}} for name in ("one", "two")],
        "output": {"as": "adapter"},
    }
    [warning] = [warning for warning in submerge.plan(recipe, ROOM).warnings if TOLD in warning]
    assert warning.startswith(f"{tmp_path / 'two'}: {TOLD} {tmp_path / 'one'}: ")


def test_without_the_library_the_steps_alone_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from submerge.engine.plan.tokens import _unlike_cuts

    find: Callable[[str], object] = lambda name: None  # noqa: E731
    monkeypatch.setattr(_unlike_cuts, "find_spec", find)
    [warning] = told(tmp_path, words(normalizer=normalizers.Lowercase()), words())
    assert "other normalizer in its tokenizer.json (pip install tokenizers to see by a text)" in warning
