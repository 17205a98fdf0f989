"""The chat template among a folder's files, and the files that it stands in."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from submerge.store.format import optional_json, read_json

__all__ = ["read_chat_template", "write_chat_template"]

_TEXT, _CONFIG, _PROCESSOR = "chat_template.jinja", "tokenizer_config.json", "chat_template.json"
_KEY = "chat_template"
_OTHERS = "additional_chat_templates"
_NAME = re.compile(r"[\w-]+")


def read_chat_template(folder: Path) -> str | None:
    """Return the template of a folder's tokenizer, or None where it has none.

    A file of its own counts before the tokenizer's configuration, as in transformers. Of several templates it
    is the one called `default`. Raises `RequestError` for a file that is no JSON.
    """
    if (folder / _TEXT).is_file():
        return (folder / _TEXT).read_text(encoding="utf-8", errors="replace")
    for name in (_CONFIG, _PROCESSOR):
        found = _default(optional_json(folder / name).get(_KEY))
        if found is not None:
            return found
    return None


def write_chat_template(folder: Path, text: str) -> None:
    """Write a template into a folder: into a file of its own, and wherever older readers look for it.

    Others that a configuration of an older form lists beside it get files of their own.
    """
    (folder / _TEXT).write_text(text, encoding="utf-8")
    for name in (_CONFIG, _PROCESSOR):
        path = folder / name
        if path.is_file():
            content = read_json(path)
            for other, template in _named(content.get(_KEY)).items():
                if other != "default" and _NAME.fullmatch(other):
                    beside = folder / _OTHERS / f"{other}.jinja"
                    beside.parent.mkdir(exist_ok=True)
                    beside.write_text(template, encoding="utf-8")
            content = {**content, _KEY: text}
            path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _default(template: Any) -> str | None:
    """Return a template, or that called `default` of several: a list of pairs, or a mapping."""
    named = _named(template)
    template = named.get("default") if named else template
    return template if isinstance(template, str) and template.strip() else None


def _named(template: Any) -> dict[str, str]:
    """Return several templates by their names: of a list of pairs, or of a mapping; empty for one alone."""
    if isinstance(template, list):
        template = {row.get("name"): row.get("template") for row in template if isinstance(row, dict)}
    if not isinstance(template, dict):
        return {}
    return {k: v for k, v in template.items() if isinstance(k, str) and isinstance(v, str)}
