"""Images of a call as its specialist's processor takes them, in the form in which calibration reads them."""

from __future__ import annotations

import os.path
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from submerge.calibrate import EncodedImage, is_pillow, open_image, prepare_image

__all__ = ["read_frames", "read_images"]


def read_images(images: Any, processor: Any, where: str) -> Any:
    """Return images with those of files, of texts in base64, and of Pillow read as `prepare_image` does.

    transformers would read a file as colours at once: it cuts grey values of 16 bits off at 255, and drops
    what is transparent. Arrays and tensors are left to it. Raises `RequestError` for what cannot be read.
    """
    if isinstance(images, list | tuple):
        return [read_images(image, processor, where) for image in images]
    if isinstance(images, str):
        return open_image(EncodedImage(images) if _is_encoded(images) else Path(images), processor, where)
    return prepare_image(images, processor, "given", where) if is_pillow(images) else images


def read_frames(videos: Any, processor: Any, where: str) -> Any:
    """Return videos with frames of Pillow read as `prepare_image` does, all with the channels of a processor.

    transformers would make arrays of them as they are: of palettes' indices, and of other shapes for grey
    frames. Raises `RequestError` for a frame that cannot be read.
    """
    if isinstance(videos, list | tuple):
        return [read_frames(video, processor, where) for video in videos]
    means = getattr(getattr(processor, "video_processor", None), "image_mean", None)
    return prepare_image(videos, _Channels(means), "given", where) if is_pillow(videos) else videos


@dataclass(frozen=True)
class _Channels:
    """Stands for the processor of frames, which are arrays before it might convert them."""

    image_mean: Any


def _is_encoded(text: str) -> bool:
    """Return whether a text is an image in base64, which has no dot, and not the path of one."""
    return text.startswith("data:") or ("." not in text and not os.path.isfile(text))
