"""What two configurations of one architecture say otherwise of how a model computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from submerge.store.folder._config import text_parts

__all__ = ["unlike_computation"]

_KEYS = (
    "num_attention_heads",
    "num_key_value_heads",
    "n_head",
    "head_dim",
    "hidden_act",
    "activation_function",
    "rms_norm_eps",
    "layer_norm_eps",
    "layer_norm_epsilon",
    "partial_rotary_factor",
    "sliding_window",
    "query_pre_attn_scalar",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "logit_scale",
    "logits_scaling",
    "embedding_multiplier",
    "residual_multiplier",
    "attention_multiplier",
    "scale_emb",
    "scale_depth",
    "num_experts_per_tok",
    "norm_topk_prob",
    "routed_scaling_factor",
    "position_embedding_type",
)
"""Keys that change what the same weights compute, in texts of any length."""
_SAME = {"swish": "silu", "mrope": "default"}
"""Other words for the same."""


def unlike_computation(own: Mapping[str, Any] | None, base: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return by key what a model's configuration says otherwise than the base's: (own value, base's value).

    Only what both say counts, for versions of transformers leave out other defaults. The text parts of
    multimodal models are compared.

    Examples:
        >>> from submerge.store import unlike_computation
        >>> unlike_computation({"rope_theta": 1e6, "rms_norm_eps": 1e-5}, {"rope_theta": 1e4})
        {'rope_theta': (1000000.0, 10000.0)}
    """
    ours, theirs = _told(own), _told(base)
    return {
        key: (ours[key], theirs[key])
        for key in ours
        if key in theirs and _word(ours[key]) != _word(theirs[key])
    }


def _told(config: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what a configuration says of the keys, and of rotary positions as versions before 5 call it."""
    merged: dict[str, Any] = {}
    for part in text_parts(config):
        merged |= {key: value for key, value in part.items() if value is not None}
    if merged.get("use_sliding_window") is False:
        merged.pop("sliding_window", None)
    told = {key: merged[key] for key in _KEYS if isinstance(merged.get(key), str | int | float)}
    return told | _rotary(merged)


def _rotary(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return base and scaling of the rotary positions; empty where layers differ, or nothing is said."""
    parameters = config.get("rope_parameters")
    parameters = parameters if isinstance(parameters, Mapping) else {}
    theta = parameters.get("rope_theta", config.get("rope_theta"))
    if not isinstance(theta, int | float) or any(isinstance(own, Mapping) for own in parameters.values()):
        return {}
    scaling = parameters or config.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default")) if isinstance(scaling, Mapping) else ""
    found = {"rope_theta": theta, "rope_type": kind}
    return found | ({"rope_factor": scaling["factor"]} if kind and "factor" in scaling else {})


def _word(value: Any) -> Any:
    return _SAME.get(value, value) if isinstance(value, str) else value
