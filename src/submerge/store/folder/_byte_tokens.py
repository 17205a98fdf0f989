"""Vocabularies that list their tokens as bytes: Mistral's `tekken.json`, and tiktoken's files of ranks."""

from __future__ import annotations

import base64
from functools import cache
from pathlib import Path

from submerge.store.format import read_json

__all__ = ["TEKKEN", "byte_characters", "read_tekken", "read_tiktoken"]

TEKKEN = "tekken.json"


def read_tekken(path: Path) -> dict[str, int]:
    """Return the tokens and ids of a `tekken.json`, spelled as in the `tokenizer.json` made of it.

    Special tokens come first, those that the file does not name as `<SPECIAL_i>`; of the others as many
    count as the vocabulary has room for. Raises `RequestError` where the file is unreadable, and
    `ValueError`, `KeyError` or `TypeError` where it is something else.
    """
    table = read_json(path)
    config = table["config"]
    special, size = int(config["default_num_special_tokens"]), int(config["default_vocab_size"])
    tokens = {f"<SPECIAL_{id_}>": id_ for id_ in range(special)}
    for row in table.get("special_tokens") or ():
        tokens.pop(f"<SPECIAL_{int(row['rank'])}>", None)
        tokens[str(row["token_str"])] = int(row["rank"])
    for row in table["vocab"]:
        if int(row["rank"]) < size - special:
            tokens[_spelled(base64.b64decode(row["token_bytes"]))] = special + int(row["rank"])
    return tokens


def read_tiktoken(path: Path) -> dict[str, int]:
    """Return the tokens and ids of a file with a token in base64 and its rank on each line.

    Special tokens are named in code, and not known. Raises `OSError` or `ValueError` for another file.
    """
    lines = (line.split() for line in path.read_bytes().splitlines() if line.strip())
    return {_spelled(base64.b64decode(token, validate=True)): int(rank) for token, rank in lines}


def _spelled(token: bytes) -> str:
    """Return bytes as byte-level BPE writes them: each as a printable character (GPT-2's table)."""
    table = byte_characters()
    return "".join(table[byte] for byte in token)


@cache
def byte_characters() -> tuple[str, ...]:
    """Return the character of each byte in byte-level BPE: itself where printable, else one above 255."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), 256)}
    others = [byte for byte in range(256) if byte not in printable]
    return tuple(chr(byte if byte in printable else 256 + others.index(byte)) for byte in range(256))
