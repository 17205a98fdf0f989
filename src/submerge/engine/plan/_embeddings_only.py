"""Multimodal models that hand more to their language model than embeddings, as no composed model does."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from submerge.errors import Problem
from submerge.names import empty_model
from submerge.store import Checkpoint

__all__ = ["more_than_embeddings"]

_POSITIONS = "positions of several dimensions (mrope)"
_LAYERS = "features in layers behind the first (deepstack)"
_MASKS = "masks by the kinds of tokens (token_type_ids)"
_CROSS = "features to attend to (cross-attention)"


def more_than_embeddings(model: Checkpoint, where: str) -> list[Problem]:
    """Return a problem where a model's class hands its language model more than the embeddings of the tokens.

    The configuration tells, and transformers' class, if it is installed: what its forward takes, and what its
    modules have for it. In a composed model features take the places of placeholders in the embeddings of one
    language model, which knows of no modality.
    """
    config = model.config or {}
    given = list(dict.fromkeys([*_of_config(config), *_of_class(config)]))
    if not given:
        return []
    name = next(iter(config.get("architectures") or ["the model"]))
    what = f"{name} gives its language model {' and '.join(given)}, not embeddings alone"
    hint = "take a specialist of the form encoder → projector → embeddings, such as Llava or Qwen2Audio"
    return [Problem(what, where or model.label, hint)]


def _of_config(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a configuration says."""
    for part in (config, *(v for k, v in config.items() if k.endswith("_config") and isinstance(v, Mapping))):
        ropes = [part.get("rope_scaling"), part.get("rope_parameters")]
        if any("mrope_section" in rope for rope in ropes if isinstance(rope, Mapping)):
            yield _POSITIONS
        if any("deepstack" in key and value for key, value in part.items()):
            yield _LAYERS
        if part.get("cross_attention_layers"):
            yield _CROSS


def _of_class(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield what transformers' class shows; nothing where it is not installed, or does not know the model."""
    network = empty_model(config)
    if network is None:
        return
    if any(hasattr(module, "get_rope_index") for module in (network, *network.children())):
        yield _POSITIONS
    takes = {name for part in (network, *network.children()) for name in _parameters(part)}
    if "token_type_ids" in takes or "mm_token_type_ids" in takes:
        yield _MASKS
    if takes & {"cross_attention_mask", "cross_attention_states", "aspect_ratio_mask"}:
        yield _CROSS


def _parameters(module: Any) -> list[str]:
    return list(inspect.signature(module.forward).parameters)
