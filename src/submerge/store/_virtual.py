"""A model that lies in no file: it is merged from others as it is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["VirtualModel"]


@dataclass(frozen=True)
class VirtualModel:
    """What is known of the merge that gives a model's values whenever they are read.

    Attributes:
        weights: the weight files that the model would have in a folder, with their sizes in bytes.
        files: those that its values are computed from.
        places: the folders and bare files that these lie in.
        nbytes: what is read for all of its values, once.
        worker_bytes: what one worker holds while it computes them.
        digest: tells this merge from others; "" while it is only planned.
    """

    weights: Mapping[str, int]
    files: tuple[Path, ...]
    places: tuple[Path, ...]
    nbytes: int
    worker_bytes: int
    digest: str = ""
