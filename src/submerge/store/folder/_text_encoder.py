"""Texts as tokens, by a tokenizer's file where that says all: the import of transformers takes seconds."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from submerge.deferred import required
from submerge.store.folder._load_tokenizer import load_tokenizer

__all__ = ["text_encoder"]


def text_encoder(folder: Path) -> Callable[[str], list[int]]:
    """Return what gives a text's tokens, behind the token that begins texts if the tokenizer has one.

    No other special tokens are added. Raises `RequestError` where the files cannot be loaded, or a package is
    missing that they need.
    """
    return _by_file(folder) or _by_transformers(folder)


def _by_transformers(folder: Path) -> Callable[[str], list[int]]:
    tokenizer = load_tokenizer(folder)
    first = tokenizer.bos_token or ""

    def encode(text: str) -> list[int]:
        return list(tokenizer(first + text, add_special_tokens=False)["input_ids"])

    return encode


def _by_file(folder: Path) -> Callable[[str], list[int]] | None:
    """Return what encodes by `tokenizer.json`; None where other files say more than that, or it is broken."""
    if find_spec("tokenizers") is None:
        return None
    try:
        settings = json.loads((folder / "tokenizer_config.json").read_bytes())
        tokenizer: Any = required("tokenizers", "prompts need").Tokenizer.from_file(
            str(folder / "tokenizer.json")
        )
        added = [_text_of(token) for token in settings.get("added_tokens_decoder", {}).values()]
        first = _text_of(settings["bos_token"])
    except Exception:  # of any kind, as from tokenizers: transformers then says what is wrong
        return None
    if any(tokenizer.token_to_id(token) is None for token in (*added, *([first] if first else []))):
        return None  # transformers adds these tokens
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda text: list(tokenizer.encode(first + text, add_special_tokens=False).ids)


def _text_of(token: Any) -> str:
    """Return a token as text: it is written so, or as a mapping with its `content`; None is no token."""
    return str(token["content"]) if isinstance(token, dict) else token or ""
