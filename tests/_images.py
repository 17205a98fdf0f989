"""Images in the forms that files have, of which readers get one or the other wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ["FORMS", "write_image"]

FORMS = ("L", "LA", "RGB", "RGBA", "P", "1", "CMYK", "lying", "16 bits", "16 bits, big-endian", "cut out")
"""Modes of Pillow; one that is to be turned; grey values of 16 bits; a palette with a transparent colour."""


def write_image(folder: Path, form: str) -> Path:
    """Write an image of 9 × 12 pixels, and return its file."""
    draw = np.random.default_rng(0)
    noise = Image.fromarray(draw.integers(0, 256, (9, 12, 4), dtype=np.uint8))
    grey = draw.integers(0, 1 << 16, (9, 12))
    file = folder / f"one.{'tif' if form in ('CMYK', '16 bits, big-endian') else 'png'}"
    if form == "lying":
        turn = Image.Exif()
        turn[0x0112] = 6  # by 90° to the right
        noise.convert("RGB").save(file, exif=turn)
    elif form == "16 bits":
        Image.fromarray(grey.astype(np.uint16)).save(file)
    elif form == "16 bits, big-endian":
        Image.fromarray(grey.astype(">u2")).save(file)
    elif form == "cut out":
        noise.convert("RGB").quantize(8).save(file, transparency=3)
    else:
        noise.convert(form).save(file)
    return file
