"""Tiny dense models of the architectures that become mixtures of experts, with one tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from _models import quiet_transformers
from _tokenizers import fast_tokenizer

__all__ = ["DENSE", "NAMES", "dense_models", "mixture_recipe"]

TEXT = {"vocab_size": 16, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}  # fmt: skip
DENSE: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "mistral": ("Mistral", {"sliding_window": 8}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 8}),
}
NAMES = ("base", "a", "b", "c")


def dense_models(root: Path, kind: str, dtype: torch.dtype = torch.float32) -> Path:
    """Write a base and three models of its size, whose weights are large enough to tell them apart."""
    t = quiet_transformers()
    name, own = DENSE[kind]
    config = getattr(t, f"{name}Config")(**TEXT, initializer_range=0.3, **own)
    for seed, folder in enumerate(NAMES):
        torch.manual_seed(seed)
        getattr(t, f"{name}ForCausalLM")(config).to(dtype).save_pretrained(root / folder)
        fast_tokenizer().save_pretrained(root / folder)
    return root


def mixture_recipe(root: Path, gate_mode: str = "cheap_embed", **more: Any) -> dict[str, Any]:
    """Return a recipe of three experts, the first of which has negative prompts."""
    experts: list[dict[str, Any]] = [
        {"source_model": str(root / "a"), "positive_prompts": ["w0 w1 w2", "w3"], "negative_prompts": ["w9"]},
        {"source_model": str(root / "b"), "positive_prompts": ["w4 w5"]},
        {"source_model": str(root / "c"), "positive_prompts": ["w6", "w7 w8 w10 w11"]},
    ]
    return {"base_model": str(root / "base"), "gate_mode": gate_mode, "experts": experts, **more}
