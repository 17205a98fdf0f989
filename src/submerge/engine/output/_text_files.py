"""How files beside the weights are written: copied, as text, as JSON, or edited in their place."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from submerge.store import read_json

__all__ = ["copy_file", "edit_json", "write_json", "write_text"]


def copy_file(source: Path, file: Path, folder: Path) -> None:
    """Copy a file, by its path inside the folder `source`, to the same path inside another."""
    target = folder / file
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / file, target)


def write_text(path: Path, text: str) -> None:
    """Write a file as UTF-8; paths may hold bytes that are none, and in JSON the escape means the same."""
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file as people read it."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def edit_json(path: Path, edit: Callable[[dict[str, Any]], Mapping[str, Any]]) -> None:
    """Write a JSON file anew where it is there, and an edit changes it."""
    if path.is_file():
        content = read_json(path)
        if (edited := edit(content)) != content:
            write_json(path, edited)
