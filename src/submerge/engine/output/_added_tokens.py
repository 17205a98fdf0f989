"""Files that name tokens and their ids, after tokens were added."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from submerge.engine.output._text_files import write_json
from submerge.errors import WorkError, few
from submerge.store import TEKKEN, read_json

__all__ = ["check_ids", "list_added_tokens"]


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


def check_ids(folder: Path, planned: Mapping[str, int], written: Mapping[str, int], library: str) -> None:
    """Raise `WorkError` where a tokenizer that was written has other ids than planned, by a `library`."""
    wrong = [f"{t!r}: {written.get(t)}, not {id_}" for t, id_ in planned.items() if written.get(t) != id_]
    if wrong:
        what = f"the tokenizer that was written numbers tokens otherwise than planned ({few(wrong)})"
        raise WorkError(f"{folder}: {what} — try another version of {library}")
