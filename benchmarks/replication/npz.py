"""Arrays of a file in the folder of data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

__all__ = ["npz"]


def npz(folder: Path, *path: str) -> Mapping[str, np.ndarray]:
    """Return the arrays of a file in the folder of data, by name; end the program where it is missing."""
    file = folder.joinpath(*path)
    if not file.exists():
        raise SystemExit(f"no data: {'/'.join(path)} is not in the folder that SUBMERGE_DATA names")
    arrays: Mapping[str, np.ndarray] = np.load(file, allow_pickle=False)
    return arrays
