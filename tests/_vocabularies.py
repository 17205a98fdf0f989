"""Tiny language models with byte-pair tokenizers of one origin, and tokens that some of them have besides."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

__all__ = [
    "CHATML",
    "FAMILIES",
    "TEXTS",
    "bpe_tokenizer",
    "language_model",
    "perturbed_model",
    "table",
    "vocabulary",
]

CHATML = ("<|im_start|>", "<|im_end|>")
TEXTS = (
    "the quick brown fox jumps over the lazy dog and runs back to the river",
    "merging models of one base needs no training, and no data of anyone",
    "a row of the table is what a token means to the model that reads it",
)
SMALL = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
OF_CLASSES = ("<|endoftext|>", "<unk>", "<bos>", "<eos>", "<mask>")
"""Tokens that classes of transformers add where a tokenizer of their models lacks them."""
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "gemma": {"head_dim": 8},
}


def bpe_tokenizer(
    added: Sequence[str | AddedToken] = (), size: int = 300, texts: Sequence[str] = TEXTS
) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer that was trained on a few texts, with special tokens added."""
    backend = Tokenizer(BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<pad>", "<s>", "</s>", *OF_CLASSES],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    tokens = [
        t if isinstance(t, AddedToken) else AddedToken(t, special=True, normalized=False) for t in added
    ]
    tokenizer.add_tokens(tokens)
    return tokenizer


def language_model(
    folder: Path,
    family: str,
    tokenizer: PreTrainedTokenizerFast,
    *,
    rows: int | None = None,
    tied: bool = False,
    dtype: str = "float32",
    **more: Any,
) -> Path:
    """Write a tiny model with a row for each token of its tokenizer, and the tokenizer."""
    count = len(tokenizer) if rows is None else rows
    keys = {"vocab_size": count, "tie_word_embeddings": tied, **SMALL, **FAMILIES[family], **more}
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **keys)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def perturbed_model(
    folder: Path, base: Path, tokenizer: PreTrainedTokenizerFast, seed: int, *, rows: int | None = None
) -> Path:
    """Write a fine-tune of a model: other values, and a row for each token of its own tokenizer.

    Rows are those that the base has for the same tokens, changed like all else; new ones are drawn anew.
    """
    model = AutoModelForCausalLM.from_pretrained(base)
    theirs, ours = vocabulary(base), tokenizer.get_vocab()
    draw = torch.Generator().manual_seed(seed)
    old = {name: t.clone() for name, t in model.state_dict().items()}
    model.resize_token_embeddings(len(tokenizer) if rows is None else rows, mean_resizing=False)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            values = torch.randn(tensor.shape, generator=draw) * 0.05
            if tensor.shape == old[name].shape and not name.endswith(
                ("embed_tokens.weight", "lm_head.weight")
            ):
                values += old[name].float()
            else:
                for text, id_ in ours.items():
                    if text in theirs and theirs[text] < len(old[name]):
                        values[id_] += old[name][theirs[text]].float()
            tensor.copy_(values)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def vocabulary(folder: Path) -> dict[str, int]:
    """Return the tokens of a folder's tokenizer with their ids, as transformers loads it."""
    return dict(PreTrainedTokenizerFast.from_pretrained(folder).get_vocab())


def table(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """Return the row of each token in a model's embedding (`input`) or head (`output`)."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    module = model.get_input_embeddings() if name == "input" else model.get_output_embeddings()
    return {text: module.weight[id_].detach() for text, id_ in vocabulary(folder).items()}


def config_of(folder: Path) -> dict[str, Any]:
    """Return config.json."""
    return dict(json.loads((folder / "config.json").read_text()))
