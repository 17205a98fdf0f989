"""Inputs in a file: texts, pairs of texts or images, with their tasks where these are known."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from submerge.deferred import required
from submerge.errors import Problem, RequestError

__all__ = ["Item", "prepared", "read_items"]

_FIELDS = ("text", "text_pair", "image", "task")


@dataclass(frozen=True)
class Item:
    """One input, a text with perhaps a second one, or the path of an image; and its task, if it is told."""

    text: str = ""
    text_pair: str = ""
    image: Path | None = None
    task: str = ""

    @property
    def shown(self) -> str:
        """The input as one line."""
        return str(self.image) if self.image else " | ".join(t for t in (self.text, self.text_pair) if t)


def read_items(path: Path) -> list[Item]:
    """Return the inputs of a file: JSON lines (`.jsonl`), or a table with a header (`.csv`, `.tsv`).

    Columns are `text`, `text_pair`, `image` (a path that starts at the file's folder) and `task`. Raises
    `RequestError` with the line that is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise RequestError(Problem(f"cannot be read ({reason})", str(path), "check the path")) from error
    rows = _lines(text, path) if path.suffix in (".jsonl", ".json") else _table(text, path)
    items = [_item(row, path, number) for number, row in rows]
    if not items:
        raise RequestError(Problem("there are no inputs", str(path), 'write {"text": …} lines'))
    if len({item.image is None for item in items}) > 1:
        raise RequestError(Problem("there are texts and images", str(path), "make two files"))
    return items


def _lines(text: str, path: Path) -> list[tuple[int, Any]]:
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                found.append((number, json.loads(line)))
            except ValueError as error:
                where = f"{path}:{number}"
                raise RequestError(Problem(f"is no JSON ({error})", where, "one object a line")) from error
    return found


def _table(text: str, path: Path) -> list[tuple[int, Any]]:
    if path.suffix not in (".csv", ".tsv"):
        raise RequestError(Problem("is no kind of file that is read", str(path), ".jsonl, .csv or .tsv"))
    reader = csv.DictReader(io.StringIO(text), delimiter="\t" if path.suffix == ".tsv" else ",")
    return [(reader.line_num, row) for row in reader]


def _item(row: Any, path: Path, number: int) -> Item:
    where = f"{path}:{number}"
    if not isinstance(row, dict) or not any(row.get(key) for key in ("text", "image")):
        raise RequestError(Problem("has no text and no image", where, f"columns are {', '.join(_FIELDS)}"))
    image = path.parent / str(row["image"]) if row.get("image") else None
    if image is not None and not image.is_file():
        raise RequestError(Problem(f"there is no image {image}", where, "paths start at the file's folder"))
    texts = {key: str(row.get(key) or "") for key in ("text", "text_pair", "task")}
    return Item(image=image, **texts)


def prepared(folder: Path, items: Sequence[Item], most: int = 512) -> Any:
    """Return a function from items to a model's inputs, by the tokenizer or image processor of a folder."""
    transformers = required("transformers", "the inputs need")
    images = items[0].image is not None
    kind = transformers.AutoImageProcessor if images else transformers.AutoTokenizer
    try:
        processor = kind.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        what = f"there is no {'image processor' if images else 'tokenizer'} ({str(error).splitlines()[0]})"
        hint = "copy the base's into the folder"
        raise RequestError(Problem(what, str(folder), hint)) from error
    if images:
        image_of = required("PIL.Image", "images need").open

        def pixels(some: Sequence[Item]) -> dict[str, Any]:
            opened = [image_of(item.image).convert("RGB") for item in some if item.image]
            return dict(processor(images=opened, return_tensors="pt"))

        return pixels
    if processor.pad_token is None:
        processor.pad_token = processor.eos_token

    def tokens(some: Sequence[Item]) -> dict[str, Any]:
        pairs = [item.text_pair for item in some]
        texts: list[Any] = [item.text for item in some]
        found = processor(
            texts,
            pairs if all(pairs) else None,
            padding=True,
            truncation=True,
            max_length=min(most, processor.model_max_length),
            return_tensors="pt",
        )
        return dict(found)

    return tokens
