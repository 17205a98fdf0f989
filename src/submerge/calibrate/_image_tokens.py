"""How many tokens an image has, which a processor counts and a model decides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from submerge.deferred import required

__all__ = ["count_as_model"]

_BESIDE_PATCHES = {"clip_vision_model": 1, "dinov2": 1, "siglip_vision_model": 0, "vit": 1}
"""How many features encoders have beside those of the patches: that of the class token."""


def count_as_model(processor: Any, folder: Path) -> None:
    """Have a processor of LLaVA's kind count the tokens of an image as the model of its folder makes them.

    Files of earlier versions of transformers leave to the model what the class needs since then: the size
    of a patch, which of the encoder's features are taken, and how many there are beside the patches.
    """
    of_kind = hasattr(processor, "patch_size") and hasattr(processor, "vision_feature_select_strategy")
    if not of_kind or not (folder / "config.json").is_file():
        return
    transformers = required("transformers", "the inputs need")
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError):  # a class of custom code, whose processor is its own
        return
    vision = getattr(config, "vision_config", None)
    if processor.patch_size is None:
        processor.patch_size = getattr(vision, "patch_size", None)
    if strategy := getattr(config, "vision_feature_select_strategy", None):
        processor.vision_feature_select_strategy = strategy
    beside = _BESIDE_PATCHES.get(getattr(vision, "model_type", ""))
    if beside is not None and hasattr(processor, "num_additional_image_tokens"):
        processor.num_additional_image_tokens = beside
