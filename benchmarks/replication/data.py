"""The folder of public data sets that suites read."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["data_folder"]


def data_folder() -> Path:
    """Return the folder that SUBMERGE_DATA names; end the program where it names none."""
    folder = os.environ.get("SUBMERGE_DATA")
    if folder is None:
        raise SystemExit("no data: set SUBMERGE_DATA to the folder of data")
    return Path(folder)
