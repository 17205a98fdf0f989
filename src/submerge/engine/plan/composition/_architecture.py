"""The class of transformers that a specialist's configuration means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["architecture_of"]

_MAPPINGS = ("MULTIMODAL_LM", "IMAGE_TEXT_TO_TEXT", "SEQ_TO_SEQ_CAUSAL_LM")
"""The auto classes of transformers that multimodal models are in, by the names of their tables."""


def architecture_of(config: Mapping[str, Any]) -> str | None:
    """Return the name of a multimodal model's class: what `architectures` says, else by its `model_type`.

    None where neither is there, or transformers is not installed or does not know the type.

    Examples:
        >>> architecture_of({"architectures": ["LlavaForConditionalGeneration"]})
        'LlavaForConditionalGeneration'
        >>> architecture_of({"model_type": "qwen2_audio"})
        'Qwen2AudioForConditionalGeneration'
    """
    if names := config.get("architectures"):
        return str(names[0])
    try:
        from transformers.models.auto import modeling_auto
    except ImportError:
        return None
    tables = (getattr(modeling_auto, f"MODEL_FOR_{name}_MAPPING_NAMES", {}) for name in _MAPPINGS)
    classes = (table.get(config.get("model_type")) for table in tables)
    return next((name for name in classes if isinstance(name, str)), None)
