"""Images, sounds and others as transformers' processors take them: one, several, or a list for each text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from submerge.errors import Problem, RequestError

__all__ = ["count_inputs", "local_inputs"]

REMOTE = ("http://", "https://", "ftp://")
FILE = "file://"


def local_inputs(inputs: Any) -> Any:
    """Return the inputs with paths as texts, without the empty lists of texts that have none; None for none.

    Raises:
        RequestError: one of them lies on another machine.
    """
    if isinstance(inputs, list | tuple):
        parts = [part for part in map(local_inputs, inputs) if part is not None]
        return parts or None
    if isinstance(inputs, Path):
        return str(inputs)
    if isinstance(inputs, str) and inputs.startswith(REMOTE):
        raise RequestError(
            Problem("no file is fetched from the net", inputs, "download it and name the file")
        )
    return inputs.removeprefix(FILE) if isinstance(inputs, str) else inputs


def count_inputs(kind: str, inputs: Any) -> int:
    """Return how many inputs of a kind these are."""
    if inputs is None:
        return 0
    if kind == "video":
        from transformers.video_utils import make_batched_videos

        return len(make_batched_videos(inputs))
    if isinstance(inputs, list | tuple):
        return sum(count_inputs(kind, part) for part in inputs)
    batch = kind == "image" and getattr(inputs, "ndim", 0) == 4  # [N, C, h, w]
    return len(inputs) if batch else 1
