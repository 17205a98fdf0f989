"""Small pictures as a domain: rows of 32 × 32 pixels as bytes, batches, features, what of a ViT is tuned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import affine_grid, grid_sample, normalize

from benchmarks.replication.encoder import Domain, Items
from benchmarks.replication.rows import CLASSES, DENSE, Rows
from benchmarks.replication.vision.base import PATCH
from benchmarks.replication.vision.formula import SIZE

__all__ = ["PICTURES", "Pictures", "cell", "rows"]

BATCH = 256
"""Pictures at once without gradients."""


class _Pictures(Items):
    """Rows as one tensor of bytes; `labels` of dense targets are patch by patch, shape [n, 16, 64]."""

    def __init__(self, rows: Rows, kind: str) -> None:
        self.kind = kind
        pixels = [np.frombuffer(row[0], np.uint8).reshape(-1, SIZE, SIZE) for row in rows]
        self.pixels = torch.from_numpy(np.stack([np.broadcast_to(one, (3, SIZE, SIZE)) for one in pixels]))
        if kind == DENSE:
            masks = np.stack([np.frombuffer(row[2], np.uint8) for row in rows])
            side = SIZE // PATCH
            cut = masks.reshape(-1, side, PATCH, side, PATCH).swapaxes(2, 3)
            self.labels = torch.from_numpy(cut.reshape(len(rows), side**2, PATCH**2).copy())
        else:
            self.labels = torch.tensor([row[2] for row in rows])

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(
        self, which: Sequence[int], device: torch.device | str = "cpu", draw: torch.Generator | None = None
    ) -> dict[str, torch.Tensor]:
        """Return pixels in [−1, 1]. With `draw`, images of classes are rotated and moved a little."""
        images = self.pixels[torch.as_tensor(which)].float() / 127.5 - 1
        if draw is not None and self.kind == CLASSES:
            images = _moved(images, draw)
        return {"pixel_values": images.to(device)}

    def batches(self) -> list[list[int]]:
        """Return the rows' numbers in their order."""
        return [list(range(i, min(i + BATCH, len(self)))) for i in range(0, len(self), BATCH)]


def _moved(images: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    """Return the images rotated by up to 8°, and stretched, sheared and moved by up to 8 %."""
    rotation, *rest = (2 * torch.rand(6, len(images), generator=draw) - 1) * 0.08
    angle = rotation / 0.08 * math.radians(8)
    wide, high, shear, right, down = rest
    maps = torch.stack(
        [
            torch.stack([(1 + wide) * angle.cos(), shear - angle.sin(), right], 1),
            torch.stack([angle.sin(), (1 + high) * angle.cos(), down], 1),
        ],
        1,
    )
    grid = affine_grid(maps, list(images.shape), align_corners=False)
    return grid_sample(images, grid, padding_mode="border", align_corners=False)


class Pictures(Domain):
    """A ViT; its feature is the mean over all tokens. Patches and positions stay as the base has them."""

    targets = r"layers\.\d+\..*(q_proj|k_proj|v_proj|o_proj|fc1|fc2)"

    def items(self, rows: Rows, base: Path, kind: str = CLASSES) -> Items:
        """Return the rows as pixels."""
        return _Pictures(rows, kind)

    def cell(self, value: Any) -> bytes:
        """Return the pixels of a picture of PIL."""
        return cell(value)

    def fresh(self, base: Path) -> Any:
        """Return the base without the pooler, which no feature passes."""
        from transformers import AutoModel

        return AutoModel.from_pretrained(base, add_pooling_layer=False)

    def frozen(self, model: Any) -> list[torch.nn.Module]:
        """Return the stem."""
        return [model.embeddings]

    def means(self, hidden: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the mean over all tokens at length one, shape [n, d]."""
        return normalize(hidden.mean(1), dim=-1)

    def places(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the tokens of patches at length one, shape [n, 16, d]."""
        return normalize(hidden[:, 1:], dim=-1)


PICTURES = Pictures()


def cell(picture: Any) -> bytes:
    """Return a picture of PIL as 32 × 32 bytes of grey, or three times as many of colours."""
    colours = picture.mode not in ("1", "L", "LA", "I", "F")
    small = np.asarray(picture.convert("RGB" if colours else "L"))
    if small.shape[:2] not in ((16, 16), (28, 28), (SIZE, SIZE)):
        small = np.asarray(picture.convert("RGB" if colours else "L").resize((SIZE, SIZE)))
    return _sized(small[None])[0].tobytes()


def rows(images: np.ndarray, labels: Sequence[Any] | np.ndarray) -> Rows:
    """Return rows of images, shape [n, h, h] or [n, h, h, 3], with h 16, 28 or 32."""
    values = labels.tolist() if isinstance(labels, np.ndarray) else labels
    return [(image.tobytes(), None, label) for image, label in zip(_sized(images), values, strict=True)]


def _sized(images: np.ndarray) -> np.ndarray:
    """Return images of 32 × 32, channels first: 16 are doubled, 28 get a margin like their edge."""
    images = np.moveaxis(images, 3, 1) if images.ndim == 4 else images[:, None]
    if images.shape[2] == SIZE // 2:
        images = images.repeat(2, 2).repeat(2, 3)
    gap = SIZE - images.shape[2]
    sides = (gap // 2, gap - gap // 2)
    return np.pad(images, ((0, 0), (0, 0), sides, sides), mode="edge")
