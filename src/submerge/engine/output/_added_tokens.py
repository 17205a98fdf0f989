"""Files that name tokens and their ids, after tokens were added."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from submerge.engine.output._side_files import write_text
from submerge.store import TEKKEN, read_json

__all__ = ["list_added_tokens", "write_json"]


def list_added_tokens(folder: Path, ids: Mapping[str, int], flags: Mapping[str, Mapping[str, Any]]) -> None:
    """Add tokens, with how each is treated, to the files of a tokenizer that list such tokens.

    Mistral's own file, which lacks them, is removed: transformers prefers it to the tokenizer.json beside it.
    """
    (folder / TEKKEN).unlink(missing_ok=True)
    decoder = {str(ids[text]): {"content": text, **of_token} for text, of_token in flags.items()}
    path = folder / "tokenizer_config.json"
    if path.is_file():
        config = read_json(path)
        if isinstance(config.get("added_tokens_decoder"), dict):
            table = {**config["added_tokens_decoder"], **decoder}
            write_json(path, {**config, "added_tokens_decoder": table})
    if (older := folder / "added_tokens.json").is_file():
        write_json(older, read_json(older) | {text: ids[text] for text in flags})


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file as people read it."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
