"""The vocabulary of a folder: its tokens and their ids."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from submerge.errors import Problem, RequestError
from submerge.store.folder._byte_tokens import TEKKEN, read_tekken, read_tiktoken
from submerge.store.folder._sentencepiece import count_pieces
from submerge.store.folder._tokenizer import SENTENCEPIECE_FILES, TIKTOKEN
from submerge.store.format import optional_json, read_json

__all__ = ["Vocabulary", "read_vocabulary"]

_HINT = "repair the file, or copy the tokenizer's files of a model with the same tokens in the place of these"
"""A tokenizer_source does not help: the tokens of all models are compared."""


@dataclass(frozen=True)
class Vocabulary:
    """Tokens and ids of one folder, and the file they come from.

    `tokens` is None when there is only a sentencepiece file, of which the `digest` is known, the number of
    its `pieces`, and the tokens that were `added` to it.
    """

    folder: Path
    file: str
    tokens: Mapping[str, int] | None
    digest: str | None = None
    added: Mapping[str, int] = field(default_factory=dict)
    pieces: int | None = None

    @property
    def size(self) -> int | None:
        """Rows that an embedding needs: the largest id plus one; None when tokens are not known."""
        return None if self.tokens is None else max(self.tokens.values(), default=-1) + 1

    def beyond(self, rows: int) -> dict[str, int]:
        """Return the tokens, by their ids, for which an embedding of so many rows has none."""
        known = self.added if self.tokens is None else self.tokens
        without_row = {token: id_ for token, id_ in known.items() if id_ >= rows}
        if self.pieces is not None and self.pieces > rows:
            without_row[f"pieces {rows} to {self.pieces - 1} of {self.file}"] = self.pieces - 1
        return dict(sorted(without_row.items(), key=lambda item: item[1]))


def read_vocabulary(folder: Path) -> Vocabulary | None:
    """Return the vocabulary of a model folder, or None if it holds no tokenizer.

    Looks at `tokenizer.json`, then `vocab.json`, then `vocab.txt`, then at Mistral's `tekken.json` and a file
    of tiktoken, then at a sentencepiece file, which is compared by digest; each but Mistral's with the tokens
    that `added_tokens.json` and `tokenizer_config.json` add. Raises `RequestError` for a broken file.
    """
    pieces = next((folder / name for name in SENTENCEPIECE_FILES if (folder / name).is_file()), None)
    digest = None if pieces is None else _digest(pieces)
    if (path := folder / "tokenizer.json").is_file():
        return Vocabulary(folder, path.name, _added(folder) | _fast(path), digest)
    for name, reader in (("vocab.json", _slow), ("vocab.txt", _lines)):
        if (path := folder / name).is_file():
            return Vocabulary(folder, name, reader(path) | _added(folder), digest)
    if (path := folder / TEKKEN).is_file():
        return Vocabulary(folder, path.name, _of_bytes(path, read_tekken), digest)
    if ranks := [*sorted(folder.glob("*.tiktoken")), *folder.glob(TIKTOKEN)]:
        return Vocabulary(folder, ranks[0].name, _of_bytes(ranks[0], read_tiktoken) | _added(folder))
    if pieces is None:
        return None
    return Vocabulary(folder, pieces.name, None, digest, _added(folder), count_pieces(pieces))


def _fast(path: Path) -> dict[str, int]:
    table = read_json(path, _HINT)
    model = table.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocab, list):  # Unigram: [token, score], the id is the position
        if not all(isinstance(row, list) and row and isinstance(row[0], str) for row in vocab):
            raise _broken(path, "model.vocab is not a list of [token, score]")
        vocab = {row[0]: id_ for id_, row in enumerate(vocab)}
    tokens = _mapping(path, {} if vocab is None else vocab, "model.vocab")
    added = table.get("added_tokens") or []
    for row in added if isinstance(added, list) else [None]:
        if (
            not isinstance(row, dict)
            or not isinstance(row.get("content"), str)
            or type(row.get("id")) is not int
        ):
            raise _broken(path, "added_tokens is not a list of {id, content}")
        tokens[row["content"]] = row["id"]
    return tokens


def _slow(path: Path) -> dict[str, int]:
    return _mapping(path, read_json(path, _HINT), "the file")


def _of_bytes(path: Path, read: Callable[[Path], dict[str, int]]) -> dict[str, int]:
    """Return what a reader of tokens in bytes returns; raise `RequestError` where the file has none."""
    try:
        return read(path)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise _broken(path, f"does not list tokens in bytes ({error!r})") from None


def _lines(path: Path) -> dict[str, int]:
    try:
        lines = path.read_bytes().decode("utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise _broken(path, f"cannot be read ({error})") from None
    if lines and not lines[-1]:
        lines.pop()
    return {line.rstrip("\r"): id_ for id_, line in enumerate(lines)}


def _added(folder: Path) -> dict[str, int]:
    """Return the tokens that the files beside a vocabulary add to it, the newer spelling first."""
    config, older = folder / "tokenizer_config.json", folder / "added_tokens.json"
    tokens = _mapping(older, optional_json(older, _HINT), "the file")
    added = optional_json(config, _HINT).get("added_tokens_decoder")
    if added is None:
        return tokens
    try:
        return tokens | {_content(token): int(id_) for id_, token in added.items()}
    except (AttributeError, KeyError, TypeError, ValueError):
        raise _broken(config, "added_tokens_decoder does not map ids to tokens") from None


def _content(token: Any) -> str:
    return token if isinstance(token, str) else str(token["content"])


def _mapping(path: Path, table: Any, what: str) -> dict[str, int]:
    if isinstance(table, dict):
        if all(type(value) is int for value in table.values()):
            return dict(table)
        if all(isinstance(value, dict) for value in table.values()):  # MMS: one map for each language
            flat = {
                f"{language} {token}": id_ for language, ids in table.items() for token, id_ in ids.items()
            }
            return _mapping(path, flat, what)
    raise _broken(path, f"{what} does not map tokens to ids")


def _broken(path: Path, what: str) -> RequestError:
    return RequestError(Problem(what, str(path), _HINT))


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _broken(path, f"cannot be read ({error.strerror})") from None
