"""What two configurations of one architecture say otherwise of how a model computes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from submerge.store.folder._config import text_parts

__all__ = ["unlike_computation"]

_KEYS = (
    "num_attention_heads",
    "num_key_value_heads",
    "n_head",
    "head_dim",
    "hidden_act",
    "hidden_activation",
    "activation_function",
    "dense_act_fn",
    "mlp_hidden_act",
    "projector_hidden_act",
    "rms_norm_eps",
    "layer_norm_eps",
    "layer_norm_epsilon",
    "norm_eps",
    "norm_epsilon",
    "layernorm_epsilon",
    "partial_rotary_factor",
    "sliding_window",
    "is_causal",
    "use_bidirectional_attention",
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
    "scale_embedding",
    "scale_attn_by_inverse_layer_idx",
    "num_experts_per_tok",
    "norm_topk_prob",
    "n_group",
    "topk_group",
    "topk_method",
    "scoring_func",
    "routed_scaling_factor",
    "position_embedding_type",
    "relative_attention_max_distance",
    "use_parallel_residual",
    "do_stable_layer_norm",
    "classifier_pooling",
    "problem_type",
    "vision_feature_layer",
    "vision_feature_select_strategy",
    "spatial_merge_size",
    "downsample_ratio",
)
"""Keys that change what the same weights compute, in texts of any length."""
_SAME = {"swish": "silu", "mrope": "default"}
"""Other words for the same."""
_SCALING = ("factor", "short_factor", "long_factor", "low_freq_factor", "high_freq_factor", "mrope_section")
"""What scales rotary positions, by the kind of scaling."""
_OTHER_PARTS = ("encoder", "decoder")
"""Parts of a configuration whose names do not say so."""


def unlike_computation(own: Mapping[str, Any] | None, base: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return by key what a model's configuration says otherwise than the base's: (own value, base's value).

    Only what both say counts, for versions of transformers leave out other defaults. All parts of multimodal
    models are compared.

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
    """Return what a configuration says of the keys, and of rotary positions as versions before 5 call it.

    What the text parts say is told as the model's own; what encoders of other modalities say, by their names.
    """
    merged: dict[str, Any] = {}
    texts = text_parts(config)
    for part in texts:
        merged |= {key: value for key, value in part.items() if value is not None}
    told = {**_of_keys(merged), **_rotary(merged)}
    for outer in texts:
        for name, part in _other_parts(outer, texts):
            told |= {f"{name}.{key}": value for key, value in _of_keys(part).items()}
    return told


def _of_keys(part: Mapping[str, Any]) -> dict[str, Any]:
    off = ("sliding_window",) if part.get("use_sliding_window") is False else ()
    keys = (key for key in _KEYS if key not in off)
    return {key: part[key] for key in keys if isinstance(part.get(key), str | int | float)}


def _other_parts(
    outer: Mapping[str, Any], texts: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the parts of a configuration that are no language models, and theirs: `vision_config`."""
    for name, part in outer.items():
        is_part = name.endswith("_config") or name in _OTHER_PARTS
        if is_part and isinstance(part, Mapping) and not any(part is text for text in texts):
            yield name, part
            yield from ((f"{name}.{inner}", own) for inner, own in _other_parts(part, texts))


def _rotary(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return base and scaling of the rotary positions, by kind of layer where these differ."""
    parameters = config.get("rope_parameters")
    parameters = parameters if isinstance(parameters, Mapping) else {}
    by_kind = {kind: own for kind, own in parameters.items() if isinstance(own, Mapping)}
    if by_kind:
        found = {f"{kind}.rope_theta": own.get("rope_theta") for kind, own in by_kind.items()}
        return {key: theta for key, theta in found.items() if isinstance(theta, int | float)}
    theta = parameters.get("rope_theta", config.get("rope_theta"))
    if not isinstance(theta, int | float):
        return {}
    local = config.get("rope_local_base_freq")
    if isinstance(local, int | float):  # Gemma 3 before version 5
        return {"full_attention.rope_theta": theta, "sliding_attention.rope_theta": local}
    scaling = parameters or config.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default")) if isinstance(scaling, Mapping) else ""
    found = {"rope_theta": theta, "rope_type": kind}
    return found | ({f"rope_{key}": scaling[key] for key in _SCALING if key in scaling} if kind else {})


def _word(value: Any) -> Any:
    return _SAME.get(value, value) if isinstance(value, str) else value
