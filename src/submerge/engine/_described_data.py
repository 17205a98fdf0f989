"""What files that a pass over data fills say of the data."""

from __future__ import annotations

from os.path import relpath
from pathlib import Path
from typing import Any

from submerge.recipe import DataSource, data_files, data_spec
from submerge.store import file_digest, file_identity

__all__ = ["described_data"]


def described_data(source: DataSource) -> dict[str, Any]:
    """Return what of the data is read, with a digest in the place of a file's path.

    A folder's files, and the images that a file names, are described by their sizes and times of change:
    there may be many.
    """
    from submerge.calibrate import image_files  # here: it loads torch

    spec = data_spec(source)
    path = Path(spec.path)
    described: dict[str, Any] = {**vars(spec), "columns": dict(spec.columns)}
    if images := image_files(source):
        root = path if path.is_dir() else path.parent
        described["images"] = {relpath(image, root): file_identity(image) for image in images}
    if path.is_file():
        return described | {"path": file_digest(path)}
    files = {str(file.relative_to(path)): file_identity(file) for file in data_files(source)}
    return described | ({"files": files} if files else {})
