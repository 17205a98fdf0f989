"""How many positions each image has in what a projector is given, where those of all images lie side by side.

Pixtral's encoder gives the patches of all images of a batch one after another, [1, positions, d], to the
projectors of LLaVA, Mistral 3 and LightOnOCR, the last two without the first dimension.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

__all__ = ["image_positions"]


def image_positions(model: Any, inputs: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the patches of each image by the `image_sizes` of a call; none where images have rows.

    A class that cuts large images into tiles looks at their sizes, too, and its tiles have rows.

    Examples:
        >>> from types import SimpleNamespace
        >>> import torch
        >>> from submerge.calibrate import image_positions
        >>> vision = SimpleNamespace(patch_size=4)
        >>> model = SimpleNamespace(config=SimpleNamespace(vision_config=vision))
        >>> image_positions(model, {"image_sizes": torch.tensor([[8, 16], [4, 4]])})
        (8, 1)
    """
    sizes = inputs.get("image_sizes")
    vision = getattr(getattr(model, "config", None), "vision_config", None)
    patch = getattr(vision, "patch_size", None)
    cuts = hasattr(sys.modules[type(model).__module__], "image_size_to_num_patches")
    if sizes is None or cuts or not isinstance(patch, int):
        return ()
    return tuple((int(height) // patch) * (int(width) // patch) for height, width in sizes)
