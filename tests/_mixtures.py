"""Tiny dense models of the architectures that become mixtures of experts, with one tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from _models import quiet_transformers, state, write
from _tokenizers import fast_tokenizer

__all__ = ["DENSE", "NAMES", "dense_folder", "dense_models", "layer_shapes", "mixture_recipe"]

TEXT = {"vocab_size": 16, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}  # fmt: skip
LONG = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8}  # fmt: skip
DENSE: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "mistral": ("Mistral", {"sliding_window": 4}),
    "llama3": ("Llama", {"rope_parameters": LONG, "head_dim": 8, "tie_word_embeddings": True}),
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


def layer_shapes(layer: int, width: int = 8, inner: int = 12) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of a layer of a Llama with two heads."""
    attention = {f"self_attn.{side}_proj.weight": (width, width) for side in "qkvo"}
    norms = {f"{name}_layernorm.weight": (width,) for name in ("input", "post_attention")}
    block = {"gate_proj": (inner, width), "up_proj": (inner, width), "down_proj": (width, inner)}
    shapes = attention | norms | {f"mlp.{name}.weight": shape for name, shape in block.items()}
    return {f"model.layers.{layer}.{name}": shape for name, shape in shapes.items()}


def dense_folder(
    folder: Path,
    seed: int,
    *,
    layers: int = 2,
    width: int = 8,
    inner: int = 12,
    model_type: str = "llama",
    dtype: torch.dtype = torch.float32,
    tokens: dict[str, int] | None = None,
    without: str = "",
    more: dict[str, tuple[int, ...]] | None = None,
) -> Path:
    """Write a Llama by hand, without tensors whose names have `without` in them, and with `more`."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (10, width)}
    for layer in range(layers):
        shapes |= layer_shapes(layer, width, inner)
    shapes |= {"model.norm.weight": (width,), "lm_head.weight": (10, width), **(more or {})}
    shapes = {name: shape for name, shape in shapes.items() if not without or without not in name}
    config = {
        "model_type": model_type,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "vocab_size": 10,
    }
    return write(folder, state(shapes, seed, dtype), config, tokens=tokens)


def mixture_recipe(root: Path, gate_mode: str = "cheap_embed", **more: Any) -> dict[str, Any]:
    """Return a recipe of three experts, the first of which has negative prompts."""
    experts: list[dict[str, Any]] = [
        {"source_model": str(root / "a"), "positive_prompts": ["w0 w1 w2", "w3"], "negative_prompts": ["w9"]},
        {"source_model": str(root / "b"), "positive_prompts": ["w4 w5"]},
        {"source_model": str(root / "c"), "positive_prompts": ["w6", "w7 w8 w10 w11"]},
    ]
    return {"base_model": str(root / "base"), "gate_mode": gate_mode, "experts": experts, **more}
