"""The items of a file: texts, pairs of texts or images, with their tasks where these are known."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from submerge.errors import Problem, RequestError

__all__ = ["Item", "read_items"]

_COLUMNS = ("text", "text_pair", "image", "task")


@dataclass(frozen=True)
class Item:
    """One input, a text with perhaps a second one, or the path of an image; and its task, if that is known.

    Examples:
        >>> from submerge.calibrate import Item
        >>> Item(text="A dog runs.", text_pair="An animal moves.").shown
        'A dog runs. | An animal moves.'
    """

    text: str = ""
    text_pair: str = ""
    image: Path | None = None
    task: str = ""

    @property
    def shown(self) -> str:
        """The input as one line."""
        return str(self.image) if self.image else " | ".join(t for t in (self.text, self.text_pair) if t)


def read_items(path: Path) -> list[Item]:
    """Return the items of a file: JSON lines (`.jsonl`), or a table with a header (`.csv`, `.tsv`).

    Columns are `text`, `text_pair`, `image` (a path that starts at the file's folder) and `task`. All items
    are texts, or all are images. Raises `RequestError` with the line that is wrong.

    Examples:
        >>> from pathlib import Path
        >>> from submerge.calibrate import read_items
        >>> written = Path("inputs.csv").write_text("text,task\\nA dog runs.,sentiment\\n")
        >>> read_items(Path("inputs.csv"))
        [Item(text='A dog runs.', text_pair='', image=None, task='sentiment')]
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise RequestError(Problem(f"cannot be read ({reason})", str(path), "check the path")) from error
    rows = _json_lines(text, path) if path.suffix in (".jsonl", ".json") else _table(text, path)
    items = [_item(row, path, number) for number, row in rows]
    if not items:
        raise RequestError(Problem("there are no inputs", str(path), 'write {"text": …} lines'))
    if len({item.image is None for item in items}) > 1:
        raise RequestError(Problem("there are texts and images", str(path), "make two files"))
    return items


def _json_lines(text: str, path: Path) -> list[tuple[int, Any]]:
    """Return the number and the value of each line that is not empty."""
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                rows.append((number, json.loads(line)))
            except ValueError as error:
                where = f"{path}:{number}"
                raise RequestError(Problem(f"is no JSON ({error})", where, "one object a line")) from error
    return rows


def _table(text: str, path: Path) -> list[tuple[int, Any]]:
    """Return the number of the line at which each row ends, and the row by column."""
    if path.suffix not in (".csv", ".tsv"):
        raise RequestError(Problem("is no kind of file that is read", str(path), ".jsonl, .csv or .tsv"))
    reader = csv.DictReader(io.StringIO(text), delimiter="\t" if path.suffix == ".tsv" else ",")
    return [(reader.line_num, row) for row in reader]


def _item(row: Any, path: Path, number: int) -> Item:
    where = f"{path}:{number}"
    if not isinstance(row, dict) or not any(row.get(key) for key in ("text", "image")):
        raise RequestError(Problem("has no text and no image", where, f"columns are {', '.join(_COLUMNS)}"))
    image = path.parent / str(row["image"]) if row.get("image") else None
    if image is not None and not image.is_file():
        raise RequestError(Problem(f"there is no image {image}", where, "paths start at the file's folder"))
    return Item(image=image, **{key: str(row.get(key) or "") for key in ("text", "text_pair", "task")})
