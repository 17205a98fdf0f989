"""Multimodal models that hand more to their language model than embeddings, as no composed model does."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from submerge.engine.plan.composition._architecture import architecture_of
from submerge.errors import Problem
from submerge.store import Checkpoint

__all__ = ["more_than_embeddings"]

_POSITIONS = "positions of several dimensions (mrope)"
_LAYERS = "features in layers behind the first (deepstack)"
_MASKS = "masks by the kinds of tokens (token_type_ids)"
_CROSS = "features to attend to (cross-attention)"
_INDICATORS = "features in the places of other tokens than its placeholder (visual_indicator_token_ids)"
_TOKENS = "its inputs as tokens of its vocabulary (vocabulary_map)"


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
    name = architecture_of(config) or "the model"
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
        if part.get("visual_indicator_token_ids"):
            yield _INDICATORS
        if part.get("vocabulary_map"):
            yield _TOKENS


def _of_class(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield what transformers' class shows; nothing where it is not installed, or does not know the model."""
    kind = _transformers_class(config)
    if kind is None:
        return
    if any(hasattr(other, "get_rope_index") for other in vars(sys.modules[kind.__module__]).values()):
        yield _POSITIONS
    takes = inspect.signature(kind.forward).parameters.keys()
    if takes & {"token_type_ids", "mm_token_type_ids"}:
        yield _MASKS
    if takes & {"cross_attention_mask", "cross_attention_states"}:
        yield _CROSS


def _transformers_class(config: Mapping[str, Any]) -> Any | None:
    """Return the class that a configuration names, if transformers is here and has it."""
    try:
        import transformers
    except ImportError:
        return None
    return getattr(transformers, architecture_of(config) or "", None)
