"""The configuration of a mixture of experts, from that of the dense model that it is made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["mixture_config"]

_SHARED = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "tie_word_embeddings": False}
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "llama": {"max_position_embeddings": 2048},
    "mistral": {
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
    },
    "qwen2": {"max_position_embeddings": 32768, "num_key_value_heads": 32},
    "qwen3": {"max_position_embeddings": 32768, "num_key_value_heads": 32},
}
"""What transformers takes for keys that a dense model's configuration lacks: other than a mixture's."""


def mixture_config(
    dense: Mapping[str, Any], architecture: str, own: Mapping[str, Any], head_size: int
) -> dict[str, Any]:
    """Return the configuration of a mixture: the dense model's, and the keys of its `architecture`.

    What the dense model leaves to the defaults of its class is written out, for those of the mixture's class
    are others; so is the size of an attention head, [h] of the query's [heads · h, hidden].
    """
    defaults = {**_SHARED, **_DEFAULTS[dense["model_type"]]}
    defaults.setdefault("num_key_value_heads", dense.get("num_attention_heads"))
    if "rope_parameters" not in dense:
        defaults["rope_theta"] = 10000.0
    given = {key: value for key, value in dense.items() if key not in ("mlp_bias", "pretraining_tp")}
    config = defaults | given | {"architectures": [architecture]} | dict(own)
    if head_size * config["num_attention_heads"] != config["hidden_size"] or "head_dim" in config:
        config["head_dim"] = head_size
    return config
