"""The bases of the multimodal suites, tiny and random."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from _models import quiet_transformers


def write_language_model(folder: Path, words: Sequence[str]) -> Path:
    """Write a Llama of two layers, and a tokenizer that knows these words; return the folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    quiet_transformers()
    special = ("<pad>", "<unk>", "<|im_start|>", "<|im_end|>")
    vocabulary = {word: i for i, word in enumerate((*special, *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
    ).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    config = LlamaConfig(vocab_size=len(vocabulary), tie_word_embeddings=True, **sizes, **ids)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def write_encoder(folder: Path) -> Path:
    """Write a ViT of one layer; return the folder."""
    from transformers import ViTConfig, ViTModel

    quiet_transformers()
    torch.manual_seed(0)
    sizes = {"hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ViTModel(ViTConfig(image_size=32, patch_size=8, **sizes), add_pooling_layer=False).save_pretrained(folder)
    return folder


def put_bases(suite: Any, root: Path, language_model: Path, encoder: Path) -> None:
    """Put them where a `Multimodal` suite with the cache `root` looks for its own."""
    from benchmarks.replication.cache import cached

    for folder, config, source in (
        (root / suite.lm.home, {"base": suite.lm.home}, language_model),
        (root / suite.eyes.home / "base", {"base": suite.eyes.home, **suite.eyes.facts}, encoder),
    ):
        cached(
            folder, config, lambda part, _, source=source: shutil.copytree(source, part, dirs_exist_ok=True)
        )
