"""Images, sounds and others as transformers' processors take them: one, several, or a list for each text."""

from __future__ import annotations

from numbers import Real
from pathlib import Path
from typing import Any

from submerge.calibrate import is_pillow
from submerge.errors import Problem, RequestError

__all__ = ["count_inputs", "counts_by_text", "is_waveform", "local_inputs", "without_empty"]

REMOTE = ("http://", "https://", "ftp://")
FILE = "file://"


def local_inputs(inputs: Any) -> Any:
    """Return the inputs with paths as texts; raise `RequestError` where one lies on another machine."""
    if isinstance(inputs, list | tuple):
        return list(map(local_inputs, inputs))
    if isinstance(inputs, Path):
        return str(inputs)
    if isinstance(inputs, str) and inputs.startswith(REMOTE):
        raise RequestError(
            Problem("no file is fetched from the net", inputs, "download it and name the file")
        )
    return inputs.removeprefix(FILE) if isinstance(inputs, str) else inputs


def without_empty(inputs: Any) -> Any:
    """Return the inputs without the empty lists of texts that have none; None where that leaves nothing."""
    if not isinstance(inputs, list | tuple) or is_waveform(inputs):
        return inputs
    return [part for part in map(without_empty, inputs) if part is not None] or None


def count_inputs(kind: str, inputs: Any) -> int:
    """Return how many inputs of a kind these are."""
    if inputs is None:
        return 0
    if kind == "video":
        from transformers.video_utils import make_batched_videos

        return len(make_batched_videos(_without_pixels(inputs)))
    if is_waveform(inputs):
        return 1
    if isinstance(inputs, list | tuple):
        return sum(count_inputs(kind, part) for part in inputs)
    batch = kind == "image" and getattr(inputs, "ndim", 0) == 4  # [N, C, h, w]
    return len(inputs) if batch else 1


def _without_pixels(frames: Any) -> Any:
    """Return frames with those of Pillow as arrays of one shape, whatever their modes are."""
    import numpy as np

    if isinstance(frames, list | tuple):
        return list(map(_without_pixels, frames))
    return np.zeros((1, 1, 3), np.uint8) if is_pillow(frames) else frames


def counts_by_text(kind: str, inputs: Any) -> list[int] | None:
    """Return how many inputs each text has, where these are a list for each text; None where they are not.

    A list of videos is not told from one of frames.
    """
    if kind == "video" or not isinstance(inputs, list | tuple) or not inputs:
        return None
    if any(part is not None and (not isinstance(part, list | tuple) or is_waveform(part)) for part in inputs):
        return None
    return [count_inputs(kind, part) for part in inputs]


def is_waveform(inputs: Any) -> bool:
    """Return whether these are the values of one sound: numbers of Python, or NumPy's of `list(array)`."""
    return isinstance(inputs, list | tuple) and bool(inputs) and isinstance(inputs[0], Real)
