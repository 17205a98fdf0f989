"""The files of images that data names, which lie outside of it and may change without it."""

from __future__ import annotations

import json
import warnings
from functools import lru_cache
from pathlib import Path

from submerge.calibrate._datasets import is_dataset
from submerge.calibrate._items import read_items
from submerge.recipe import DataSource, data_files, data_spec
from submerge.store import file_identity

__all__ = ["image_files"]


def image_files(source: DataSource) -> list[Path]:
    """Return the files of the images that rows name by their paths, sorted; none of texts.

    Those of a folder of images are its own files (`recipe.data_files`), and what is on the Hub names none
    here. Raises `RequestError` as `read_items` does.

    Examples:
        >>> from pathlib import Path
        >>> from submerge.calibrate import image_files
        >>> Path("a.png").touch()
        >>> written = Path("inputs.jsonl").write_text('{"image": "a.png", "text": "What is it?"}')
        >>> image_files("inputs.jsonl")
        [PosixPath('a.png')]
    """
    spec = data_spec(source)
    path = Path(spec.path)
    if not path.exists() or (path.is_dir() and not is_dataset(spec)):
        return []
    known = tuple((str(file), *file_identity(file).values()) for file in data_files(source))
    return list(_named(json.dumps({**vars(spec), "columns": dict(spec.columns)}), known))


@lru_cache(maxsize=64)
def _named(source: str, known: tuple[tuple[str | int, ...], ...]) -> tuple[Path, ...]:
    """Return the images' files; data is read once for the files that are `known`, until one changes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whoever encodes it warns
        items = read_items(json.loads(source))
    files = {getattr(image, "file", image) for item in items for image in item.images}
    return tuple(sorted(file for file in files if isinstance(file, Path)))
