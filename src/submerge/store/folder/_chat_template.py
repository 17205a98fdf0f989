"""The chat template among a folder's files, and the files that it stands in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from submerge.store.format import read_json

__all__ = ["read_chat_template", "write_chat_template"]

_TEXT, _CONFIG, _PROCESSOR = "chat_template.jinja", "tokenizer_config.json", "chat_template.json"
_KEY = "chat_template"


def read_chat_template(folder: Path) -> str | None:
    """Return the template of a folder's tokenizer, or None where it has none.

    A file of its own counts before the tokenizer's configuration, as in transformers. Of several templates it
    is the one called `default`. Raises `RequestError` for a file that is no JSON.
    """
    if (folder / _TEXT).is_file():
        return (folder / _TEXT).read_text(encoding="utf-8", errors="replace")
    for name in (_CONFIG, _PROCESSOR):
        if (folder / name).is_file():
            found = _default(read_json(folder / name).get(_KEY))
            if found is not None:
                return found
    return None


def write_chat_template(folder: Path, text: str) -> None:
    """Write a template into a folder: into a file of its own, and wherever older readers look for it."""
    (folder / _TEXT).write_text(text, encoding="utf-8")
    for name in (_CONFIG, _PROCESSOR):
        path = folder / name
        if path.is_file():
            content = {**read_json(path), _KEY: text}
            path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _default(template: Any) -> str | None:
    """Return a template, or that called `default` of several: a list of pairs, or a mapping."""
    if isinstance(template, list):
        template = {row.get("name"): row.get("template") for row in template if isinstance(row, dict)}
    if isinstance(template, dict):
        template = template.get("default")
    return template if isinstance(template, str) and template.strip() else None
