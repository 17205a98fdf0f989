"""Images of the user's data, opened as the processors of models take them."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from submerge.deferred import required
from submerge.errors import Problem, RequestError, first_line

__all__ = [
    "EncodedImage",
    "HeldImage",
    "ImageSource",
    "image_of_array",
    "image_processor",
    "is_pillow",
    "open_image",
    "prepare_image",
]

SHOWN = 24
"""Characters of an image in a text that messages show."""

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's names of images by their channels."""
_DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N")
"""Its names of grey values of 16 bits, in files or as they are in memory."""


def image_processor(processor: Any) -> Any:
    """Return a processor's image processor, or an image processor itself."""
    return getattr(processor, "image_processor", processor)


class ImageSource(Protocol):
    """An image that is not a file by itself, such as one in a column of a data set; `str` names it."""

    def read(self) -> bytes:
        """Return what a file of the image would hold."""
        ...


@dataclass(frozen=True)
class EncodedImage:
    """An image in a text, `data:image/png;base64,…` or what follows the comma."""

    text: str

    def __str__(self) -> str:
        return self.text if len(self.text) <= SHOWN else f"{self.text[:SHOWN]}…"

    def read(self) -> bytes:
        try:
            return base64.b64decode(self.text.rpartition(",")[2])
        except ValueError as error:
            also = "" if self.text.startswith("data:") else "there is no such file, and "
            raise ValueError(f"{also}it is not base64: {error}") from error


@dataclass(frozen=True)
class HeldImage:
    """An image of which the file's bytes are at hand."""

    data: bytes

    def __str__(self) -> str:
        return f"of {len(self.data)} bytes"

    def read(self) -> bytes:
        return self.data


def is_pillow(value: Any) -> bool:
    """Return whether a value is an image of Pillow."""
    return type(value).__module__.startswith("PIL.")


def image_of_array(values: Any, where: str) -> Any:
    """Return an array of NumPy [h, w] or [h, w, c] with values of 8 bits as an image of Pillow's.

    Raises `RequestError` for others, of which neither the range nor the place of the channels is known.
    """
    import numpy as np

    array = np.asarray(values)
    if array.dtype != np.uint8 or (array.ndim != 2 and array.shape[2:] not in ((3,), (4,))):
        what = f"an image is an array {list(array.shape)} of {array.dtype}"
        hint = "give [height, width, 3] of uint8, an image of Pillow, or batches of pixel_values"
        raise RequestError(Problem(what, where, hint))
    return required("PIL.Image", "images need").fromarray(array)


def open_image(image: Any, processor: Any, where: str) -> Any:
    """Return an image, a path, an `ImageSource` or one of Pillow's, as its processor takes it.

    See `prepare_image`. Raises `RequestError`, with the place where the image is named, for one that cannot
    be read.
    """
    if is_pillow(image):
        return prepare_image(image, processor, "given", where)
    with (
        _readable(str(image), where) as pil,
        pil.open(image if isinstance(image, (str, Path)) else io.BytesIO(image.read())) as file,
    ):
        return prepare_image(file, processor, str(image), where)


def prepare_image(image: Any, processor: Any, name: str, where: str) -> Any:
    """Return an image of Pillow's as a processor takes it, upright where its file says that it lies.

    One that converts images itself gets them as they are, since it lays transparent ones on a background of
    its own. Others take the channels that they are given: as many as they have means. Grey values of 16 bits
    become the 8 that processors expect; Pillow would cut off all above 255. `serving/_route_template.py`,
    which stands alone, does the same.
    """
    operations = required("PIL.ImageOps", "images need")
    with _readable(name, where) as pil:
        upright = operations.exif_transpose(image)
        shown = _of_8_bits(upright, pil) if upright.mode in (*_DEEP, "F") else upright
        own = image_processor(processor)
        if getattr(own, "do_convert_rgb", None):
            return shown
        means = getattr(own, "image_mean", None)
        channels = shown.convert("RGBA") if "transparency" in shown.info else shown  # palettes warn
        return channels.convert(_MODES[len(means) if isinstance(means, Sequence) else 3])


@contextmanager
def _readable(name: str, where: str) -> Iterator[Any]:
    """Give Pillow, and say of what it raises which image it is."""
    pil = required("PIL.Image", "images need")
    try:
        yield pil
    except (OSError, ValueError, SyntaxError, pil.DecompressionBombError) as error:
        unknown = isinstance(error, pil.UnidentifiedImageError)  # whose own words hold an address in memory
        reason = "its format is unknown" if unknown else first_line(error)
        what = f"the image {name} cannot be read ({reason})"
        raise RequestError(Problem(what, where, "replace it, or leave it out")) from error


def _of_8_bits(image: Any, pil: Any) -> Any:
    """Return grey values of 16 bits as 8: the upper ones; other depths have no range that is known."""
    import numpy as np

    values = np.asarray(image)
    if values.dtype.kind == "f" or not 0 <= values.min() <= values.max() < 1 << 16:
        raise ValueError("its values have neither 8 nor 16 bits")
    return pil.fromarray((values >> 8).astype(np.uint8))
