"""What files that a pass over data fills say of the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from submerge.recipe import DataSource, data_spec
from submerge.store import file_digest

__all__ = ["described_data"]


def described_data(source: DataSource) -> dict[str, Any]:
    """Return what of the data is read, with a digest in the place of a file's path."""
    spec = data_spec(source)
    path = Path(spec.path)
    return {
        **vars(spec),
        "columns": dict(spec.columns),
        "path": file_digest(path) if path.is_file() else spec.path,
    }
