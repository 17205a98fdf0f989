"""Tiny tokenizers of transformers, and models beside them that have a row for each of their tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, pre_tokenizers
from tokenizers.models import BPE, WordLevel
from transformers import PreTrainedTokenizerFast

__all__ = ["BASE_TOKENS", "WIDTH", "fast_tokenizer", "language_model", "multimodal_model", "special"]

BASE_TOKENS = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": 3 + i for i in range(13)}
"""Sixteen tokens."""
WIDTH = 4
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def special(*texts: str) -> list[AddedToken]:
    """Return special tokens of these texts, as processors have them added."""
    return [AddedToken(text, special=True, normalized=False) for text in texts]


def fast_tokenizer(
    added: Sequence[AddedToken] = (),
    vocabulary: Mapping[str, int] = BASE_TOKENS,
    merges: Sequence[tuple[str, str]] | None = None,
) -> PreTrainedTokenizerFast:
    """Return a tokenizer of words between spaces, or with `merges` one of byte pairs, and added tokens."""
    model = (
        WordLevel(dict(vocabulary), unk_token="<unk>")
        if merges is None
        else BPE(dict(vocabulary), list(merges), unk_token="<unk>")
    )
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.add_tokens(list(added))
    return tokenizer


def language_model(folder: Path, rows: int = 16, seed: int = 0, *, tied: bool = False) -> Path:
    """Write the tables of a language model and its configuration, without a tokenizer."""
    return _write(folder, _tables(rows, seed, "", tied), {"model_type": "llama", **_text(rows, tied)})


def multimodal_model(
    folder: Path, rows: int, seed: int = 1, *, tied: bool = False, prefix: str = "", **config: Any
) -> Path:
    """Write the tables of a multimodal model and its configuration, without a tokenizer or a processor."""
    whole = {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"], **config}
    text = {"model_type": "llama", **_text(rows, tied), "pad_token_id": 0}
    return _write(folder, _tables(rows, seed, prefix, tied), {**whole, "text_config": text})


def _text(rows: int, tied: bool) -> dict[str, Any]:
    return {"vocab_size": rows, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": tied}


def _tables(rows: int, seed: int, prefix: str, tied: bool) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    names = [EMBEDDING, "model.norm.weight", *([] if tied else [HEAD])]
    shapes = {EMBEDDING: (rows, WIDTH), HEAD: (rows, WIDTH), "model.norm.weight": (WIDTH,)}
    return {prefix + name: torch.randn(shapes[name], generator=draw) for name in names}


def _write(folder: Path, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder
