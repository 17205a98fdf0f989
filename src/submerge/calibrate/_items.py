"""The items of a user's data, which are all of one kind."""

from __future__ import annotations

import json
import os.path
import warnings
from collections.abc import Iterable, Mapping
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

from submerge.calibrate._datasets import StoredImage, check_no_split, dataset_rows, is_dataset
from submerge.calibrate._images import EncodedImage, HeldImage, image_of_array, is_pillow
from submerge.calibrate._item import KINDS, ImageFile, Item
from submerge.calibrate._messages import read_messages
from submerge.calibrate._rows import IMAGES, Row, Rows, folder_rows, read_rows
from submerge.errors import Problem, RequestError, few
from submerge.recipe import COLUMNS, DataSource, DataSpec, data_spec

__all__ = ["check_one_kind", "items_of", "read_items"]

_PAIRS = (
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "passage"),
    ("question", "context"),
    ("query", "passage"),
)
"""Columns of published data sets whose texts are read as pairs, as hints name them."""
_ALPACA = frozenset({"instruction", "input"})
"""Columns of which a template makes one text, as each model was trained."""
_JOIN = "write instruction and input into one column text, with the template that the model was trained with"
_UNREAD = ("audio", "audios", "sound", "video", "videos")
"""Columns without which a text beside them is not what the model is asked."""


def read_items(source: DataSource) -> list[Item]:
    """Return the items of a file, a folder, or a data set of the package `datasets`.

    * a file of rows, also packed (`.gz`, `.bz2`, `.xz`, `.zst`): JSON lines (`.jsonl`), JSON (`.json`, an
      array of objects), a table with a header (`.csv`, `.tsv`), lines of text (`.txt`); or `.parquet`,
      `.arrow`;
    * a folder of images, sorted by their paths, or one that `datasets` saved (`save_to_disk`);
    * the name of a data set of the Hub, such as `nyu-mll/glue`, which `datasets` downloads;
    * a mapping with one of these as `path`, and perhaps `name` and `split` (of a data set), `columns` (ours
      → those of the data, which are then the only ones that are read) and `limit` (how many rows are read).

    Columns are `text` (or `prompt`), `text_pair`, `image` (or `images`; paths that start at the file's
    folder, or `data:image/…` in base64), `messages` (or `conversations`), with `system` and `tools` beside
    them, and `task`. All items are of one kind. Texts and paths are held, images are not. Raises
    `RequestError` with the line that is wrong.

    Examples:
        >>> from pathlib import Path
        >>> from submerge.calibrate import read_items
        >>> written = Path("inputs.csv").write_text("text,task\\nA dog runs.,sentiment\\n")
        >>> read_items("inputs.csv")
        [Item(text='A dog runs.', text_pair='', image=None, task='sentiment', messages=())]
        >>> written = Path("questions.jsonl").write_text('{"question": "Why?", "answer": "…"}\\n' * 3)
        >>> source = {"path": "questions.jsonl", "columns": {"text": "question"}, "limit": 2}
        >>> [item.text for item in read_items(source)]
        ['Why?', 'Why?']
    """
    spec = data_spec(source)
    path = Path(spec.path)
    root = path if path.is_dir() else path.parent
    with closing(_rows(spec, path)) as rows:  # what is wrong with an item leaves the file open
        items = items_of(islice(rows, spec.limit), root, spec.columns)
    if not items:
        raise RequestError(Problem("there are no inputs", spec.path, 'write {"text": …} lines'))
    check_one_kind(items, spec.path)
    return items


def _rows(spec: DataSpec, path: Path) -> Rows:
    if is_dataset(spec):
        return dataset_rows(spec)
    check_no_split(spec)
    if not path.is_dir():
        return read_rows(path)
    _warn_of_texts(path)
    return folder_rows(path)


def _warn_of_texts(folder: Path) -> None:
    """Warn where a folder of images has a list with texts or chats, which are not read of the folder."""
    for file in (folder / f"metadata{ending}" for ending in (".csv", ".jsonl")):
        try:
            with closing(read_rows(file)) as rows:
                row: Any = next(rows, ("", None))[1]
        except RequestError:
            continue
        columns = (*COLUMNS["text"], *COLUMNS["messages"])
        if isinstance(row, Mapping) and (texts := [name for name in columns if name in row]):
            what = f"{folder}: the images are read, and not {few(texts)} of {file.name}"
            warnings.warn(f"{what} — name that file to read both", UserWarning, stacklevel=2)


def items_of(rows: Iterable[Row], root: Path, columns: Mapping[str, str] | None = None) -> list[Item]:
    """Return the items of rows, of which `columns` are read, and paths start at `root`."""
    names = {ours: (name,) for ours, name in columns.items()} if columns else COLUMNS
    items: list[Item] = []
    halves: list[str] = []
    for where, row in rows:
        if columns and not items:  # an object may lack what others have, but not the first
            _check_columns(row, columns, where)
        items.append(_item(row, where, root, names))
        if columns and _is_half(row, columns):
            halves.append(where)
    if halves:
        what = f"{few(halves, 1)}: the instruction is read without its input"
        warnings.warn(f"{what} — {_JOIN}", UserWarning, stacklevel=2)
    return items


def _is_half(row: Any, columns: Mapping[str, str]) -> bool:
    """Return whether a row is one of Alpaca's whose instruction alone is read, and it has an input, too."""
    read = set(columns.values())
    is_one = isinstance(row, Mapping) and _ALPACA <= row.keys() and "instruction" in read
    return is_one and "input" not in read and _is_given(row["input"])


def check_one_kind(items: Iterable[Item], where: str) -> None:
    """Raise `RequestError` where items are of several kinds."""
    kinds = sorted({item.kind for item in items}, key=KINDS.index)
    if len(kinds) > 1:
        raise RequestError(Problem(f"there are {kinds[0]} and {kinds[1]}", where, "make two files"))


def _check_columns(row: Any, columns: Mapping[str, str], where: str) -> None:
    names = list(row) if isinstance(row, Mapping) else []
    if missing := [name for name in columns.values() if name not in names]:
        raise RequestError(
            Problem(f"there is no column {few(missing)}", where, f"columns are {few(names, 20)}")
        )


def _item(row: Any, where: str, root: Path, names: Mapping[str, tuple[str, ...]]) -> Item:
    row = {"text": row} if isinstance(row, str) else row
    if not isinstance(row, Mapping):
        raise RequestError(Problem("has no text and no image", where, f"columns are {', '.join(COLUMNS)}"))
    values = {ours: next((row[n] for n in own if _is_given(row.get(n))), None) for ours, own in names.items()}
    if names is COLUMNS:
        _check_all_read(row, where)
        values["image"] = _listed_image(row) if values["image"] is None else values["image"]
    images = _images(values.get("image"), root, where)
    # a "prompt" may itself be a chat
    chat = values.get("messages") or (values["text"] if _is_chat(values.get("text")) else None)
    task = _text(values.get("task"), where)
    if chat:
        chat = _with_system(chat, _text(values.get("system"), where))
        messages = read_messages(chat, images, where, resolve=lambda image: _image(image, root, where))
        tools = _tools(values.get("tools"), where)
        return Item(task=task, messages=tuple(messages), tools=tools, where=where)
    text, pair = (_text(values.get(key), where) for key in ("text", "text_pair"))
    if not text and not images:
        raise RequestError(Problem("has no text and no image", where, _columns_hint(row, names)))
    if pair and (images or not text):
        what = f"has a text_pair, and {'an image' if images else 'no text'}"
        raise RequestError(Problem(what, where, "put both texts into text"))
    if len(images) > 1 and not text:
        raise RequestError(Problem("has several images and no text", where, "make a row of each image"))
    image = images[0] if len(images) == 1 else tuple(images) or None
    return Item(text, pair, image, task, where=where)


def _check_all_read(row: Mapping[str, Any], where: str) -> None:
    """Raise `RequestError` where a row has a sound or a video, whose text alone would be another input."""
    for name in _UNREAD:
        value = row.get(name)
        if value and not isinstance(value, (bool, int, float)):
            hint = "encode it as batches of tensors in Python, or name what is read with columns: {…}"
            raise RequestError(Problem(f"has {name}, which is not read", where, hint))


def _listed_image(row: Mapping[str, Any]) -> Any:
    """Return the image of a row of `metadata.csv` or `metadata.jsonl`, as `datasets` has image folders."""
    name = row.get("file_name")
    return name if isinstance(name, str) and name.lower().endswith(IMAGES) else None


def _with_system(chat: Any, system: str) -> Any:
    """Return a chat with the message of the system that stands beside it, unless it begins with one."""
    if not system or not _is_chat(chat):
        return chat
    first = chat[0] if chat else {}
    given = "system" in (first.get("role"), first.get("from"))
    return chat if given else [{"role": "system", "content": system}, *chat]


def _tools(value: Any, where: str) -> tuple[Mapping[str, Any], ...]:
    """Return what a chat may call: a list of objects, or it as JSON, as TRL and LLaMA-Factory have it."""
    try:
        tools = json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise RequestError(Problem(f"its tools are no JSON ({error})", where, "write a list")) from error
    if tools is None:
        return ()
    if not _is_chat(tools):
        raise RequestError(
            Problem("its tools are no list of objects", where, 'write [{"type": "function", …}]')
        )
    return tuple(tools)


def _is_chat(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(message, Mapping) for message in value)


def _is_given(value: Any) -> bool:
    """Return whether a cell has a value, as the number 0 is one; NaN stands for none in tables of numbers."""
    if hasattr(value, "__array__"):  # an image, of which many numbers have no one truth
        return True
    return value == value if isinstance(value, (int, float)) else bool(value)


def _columns_hint(row: Mapping[str, Any], names: Mapping[str, tuple[str, ...]]) -> str:
    """Return what to do about a row in which there is nothing to read."""
    if empty := [name for key in ("text", "image", "messages") for name in names.get(key, ()) if name in row]:
        return f"{empty[0]} is empty: fill it, or leave the row out"
    known = {name for own in names.values() for name in own}
    others = {name: value for name, value in row.items() if name not in known and value}
    if not (mapped := _suggested(others)):
        return f"columns are {', '.join(COLUMNS)}; there are {few(row, 20) or 'none'}"
    if _ALPACA <= row.keys():  # also where this row's input is empty: others may have one
        return f"columns are {few(row, 20)}; {_JOIN}"
    return f"columns are {few(row, 20)}; name one with columns: {{{mapped}}}"


def _suggested(row: Mapping[str, Any]) -> str:
    """Return which of a row's columns is likely to be what, as a recipe writes it; empty if none is."""
    if pair := next((pair for pair in _PAIRS if all(isinstance(row.get(name), str) for name in pair)), None):
        return f"text: {pair[0]}, text_pair: {pair[1]}"
    for name, value in row.items():
        if isinstance(value, str):
            return f"{'image' if value.lower().endswith(IMAGES) else 'text'}: {name}"
        if isinstance(value, list) and _is_chat(value) and ({"role", "from"} & value[0].keys()):
            return f"messages: {name}"
    return ""


def _text(value: Any, where: str) -> str:
    """Return a cell as text, which is empty where it is blank."""
    if isinstance(value, (list, Mapping)):
        what = f"a text is a {'list' if isinstance(value, list) else 'mapping'}"
        raise RequestError(Problem(what, where, "name a column of texts with columns: {text: …}"))
    text = "" if value is None else str(value)
    return text if text.strip() else ""


def _images(value: Any, root: Path, where: str) -> list[ImageFile]:
    values = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
    return [_image(value, root, where) for value in values]


def _image(value: Any, root: Path, where: str) -> ImageFile:
    if isinstance(value, StoredImage) or is_pillow(value):
        return value
    if hasattr(value, "__array__"):
        return image_of_array(value, where)
    if isinstance(value, Mapping):  # as `datasets` has images that it does not decode
        value = value.get("bytes") or value.get("path") or dict(value)
    if isinstance(value, (bytes, bytearray)):
        return HeldImage(bytes(value))
    text = str(value).removeprefix("file://")
    if text.startswith("data:image/"):
        return EncodedImage(text)
    image = root / text
    if not os.path.isfile(image):  # False where a name is too long for a path, as one with the bytes in it is
        what = f"there is no image {str(image)[:200]}"
        hint = "paths start at the file's folder"
        if text.startswith(("http:", "https:", "data:")):
            what, hint = f"an image is {text[:60]}, and not a path", "save it, and give its path"
        raise RequestError(Problem(what, where, hint))
    return image
