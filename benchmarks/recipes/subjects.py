"""The models that the recipes merge: Llama-shaped checkpoints of noise, and tokenizers for some of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.speed.models import BASE, SIZES, Shape, make_models

__all__ = ["documents", "experts", "stacked", "vocabularies"]

Say = Callable[[str], None]
DEEP = Shape(hidden=256, intermediate=704, layers=80, vocabulary=32000, heads=8, kv_heads=4)
SMALL = Shape(hidden=512, intermediate=1408, layers=16, vocabulary=32000, heads=8, kv_heads=4)
NEW_TOKENS = 1500
"""Tokens that one of the models of unequal vocabularies has besides."""
BYTES = 256


def stacked(work: Path, say: Say) -> dict[str, Path]:
    """Return two models of 80 layers."""
    return make_models(work / "deep", DEEP, say, tuned=("a",))


def documents(work: Path, say: Say) -> dict[str, Path]:
    """Return a base of 110 million parameters and three fine-tunes."""
    return make_models(work / "110m", SIZES["110m"], say)


def experts(work: Path, say: Say) -> dict[str, Path]:
    """Return a base of 16 layers and four fine-tunes, with tokenizers."""
    models = make_models(work / "experts", SMALL, say, tuned=("a", "b", "c", "d"))
    for folder in models.values():
        _add_tokenizer(folder, SMALL.vocabulary)
    return models


def vocabularies(work: Path, say: Say) -> dict[str, Path]:
    """Return a model, and one of the same tokens with further ones and other values."""
    wide = replace(SMALL, vocabulary=SMALL.vocabulary + NEW_TOKENS)
    small = make_models(work / "vocabulary", SMALL, say, tuned=())[BASE]
    large = make_models(work / "wide", wide, say, tuned=("a",))["a"]
    shutil.rmtree(work / "wide" / BASE, ignore_errors=True)
    _add_tokenizer(small, SMALL.vocabulary)
    _add_tokenizer(large, SMALL.vocabulary, [f"<|new{i}|>" for i in range(NEW_TOKENS)])
    return {"small": small, "large": large}


def _add_tokenizer(folder: Path, count: int, added: Sequence[str] = ()) -> None:
    """Write a byte-level tokenizer of so many tokens, and of those that are added, unless there is one."""
    if (folder / "tokenizer.json").is_file():
        return
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    assert len(alphabet) == BYTES
    texts = ["<unk>", "<s>", "</s>", *alphabet]
    texts += [f"Ġword{i}" for i in range(count - len(texts))]
    backend = Tokenizer(BPE({text: i for i, text in enumerate(texts)}, [], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in added])
    tokenizer.save_pretrained(folder)
