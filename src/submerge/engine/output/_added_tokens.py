"""Files that name tokens and their ids, after tokens were added or got other ids."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from submerge.engine.output._side_files import write_text
from submerge.store import read_json

__all__ = ["list_added_tokens", "with_token_ids", "write_json"]

_TOKEN_IDS = re.compile(r"\w+_token_(?:ids?|index)")


def list_added_tokens(folder: Path, ids: Mapping[str, int], flags: Mapping[str, Mapping[str, Any]]) -> None:
    """Add tokens, with how each is treated, to the files of a tokenizer that list such tokens."""
    decoder = {str(ids[text]): {"content": text, **of_token} for text, of_token in flags.items()}
    path = folder / "tokenizer_config.json"
    if path.is_file():
        config = read_json(path)
        if isinstance(config.get("added_tokens_decoder"), dict):
            table = {**config["added_tokens_decoder"], **decoder}
            write_json(path, {**config, "added_tokens_decoder": table})
    if (older := folder / "added_tokens.json").is_file():
        write_json(older, read_json(older) | {text: ids[text] for text in flags})


def with_token_ids(part: Mapping[str, Any], ids: Mapping[int, int]) -> dict[str, Any]:
    """Return a part of a configuration with the ids that its tokens have now."""

    def renumbered(value: Any) -> Any:
        if isinstance(value, list):
            return [renumbered(each) for each in value]
        return ids.get(value, value) if type(value) is int else value

    return {key: renumbered(value) if _TOKEN_IDS.fullmatch(key) else value for key, value in part.items()}


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file as people read it."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
