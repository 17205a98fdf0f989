"""The keys of a recipe, those of mergekit that are not supported, and the names of number formats."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = [
    "ABSENT_KEYS",
    "DTYPES",
    "ENTRY_KEYS",
    "RECIPE_KEYS",
    "RENAMED_KEYS",
]

RECIPE_KEYS = (
    "merge_method",
    "models",
    "slices",
    "modules",
    "base_model",
    "parameters",
    "coefficients",
    "moments",
    "projectors",
    "prototypes",
    "dtype",
    "out_dtype",
    "tokenizer_source",
    "tokenizer",
    "chat_template",
    "modality_tokens",
    "rules",
    "output",
    "seed",
    "name",
)
"""The keys of a recipe."""

ENTRY_KEYS = (
    "model",
    "lora",
    "parameters",
    "data",
    "name",
    "head",
    "modality",
    "language_lora",
    "modality_lora",
    "placeholder",
    "share_projector",
)
"""The keys of one entry of `models`."""

_NO_MOE = "it belongs to a mixture of experts: submerge moe RECIPE OUT makes one"

ABSENT_KEYS: Mapping[str, str] = {
    "layer_range": "it belongs to a source of one of the 'slices'",
    "residual_weight": "no merge uses it, and mergekit's neither; remove the key",
    "experts": _NO_MOE,
    "shared_experts": _NO_MOE,
    "gate_mode": _NO_MOE,
    "experts_per_token": _NO_MOE,
    "always_on": _NO_MOE,
    "positive_prompts": _NO_MOE,
    "negative_prompts": _NO_MOE,
    "residual_scale": _NO_MOE,
}
"""Keys that mergekit reads and Submerge does not support, with what to do instead."""

RENAMED_KEYS: Mapping[str, str] = {"random_seed": "seed", "method": "merge_method", "base": "base_model"}
"""Keys that people write, with the key that they mean."""

DTYPES: Mapping[str, str] = {
    spelling: name
    for name, spellings in {
        "float16": ("float16", "fp16", "f16", "half"),
        "bfloat16": ("bfloat16", "bf16"),
        "float32": ("float32", "fp32", "f32", "float"),
        "float64": ("float64", "fp64", "f64", "double"),
    }.items()
    for spelling in spellings
}
"""Spellings of the number formats that a recipe may ask for."""
