"""The vocabulary of a model folder, token → id, and how two of them differ."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from submerge.errors import Problem, RequestError
from submerge.store._problems import read_json

__all__ = ["TOKENIZER_FILES", "Vocabulary", "VocabularyDiff", "compare_vocabularies", "read_vocabulary"]

_SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "source.spm", "target.spm")
TOKENIZER_FILES: frozenset[str] = frozenset(
    {
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "normalizer.json",
        "tokenizer.model.v3",
        "tekken.json",
        "chat_template.json",
        "chat_template.jinja",
        *_SENTENCEPIECE,
    }
)
_HINT = "repair the file, or take the tokenizer of another model"
_SHOWN = 5


@dataclass(frozen=True)
class Vocabulary:
    """Tokens and ids of one folder, and the file they come from.

    `tokens` is None when there is only a sentencepiece file, of which only the `digest` is known.
    """

    folder: Path
    file: str
    tokens: Mapping[str, int] | None
    digest: str | None = None

    @property
    def size(self) -> int | None:
        """Rows that an embedding needs: the largest id plus one; None when tokens are not known."""
        return None if self.tokens is None else max(self.tokens.values(), default=-1) + 1


@dataclass(frozen=True)
class VocabularyDiff:
    """How two vocabularies differ; the tuples hold the first few examples, the counts count all."""

    equal: bool
    comparable: bool
    missing_in_a: int = 0
    missing_in_b: int = 0
    moved: int = 0
    examples_missing_in_a: tuple[str, ...] = ()
    examples_missing_in_b: tuple[str, ...] = ()
    examples_moved: tuple[tuple[str, int, int], ...] = ()

    def describe(self, a: str = "the first", b: str = "the second") -> str:
        """Return the difference as text, with `a` and `b` naming the two sides."""
        if self.equal:
            return "the vocabularies are equal"
        if not self.comparable:
            return "the vocabularies differ (their files are of kinds that cannot be compared by token)"
        parts = []
        for count, side, shown in (
            (self.missing_in_a, a, self.examples_missing_in_a),
            (self.missing_in_b, b, self.examples_missing_in_b),
        ):
            if count:
                parts.append(f"{_tokens(count)} missing in {side} ({_list(map(repr, shown), count)})")
        if self.moved:
            shown = tuple(f"{token!r}: {left} and {right}" for token, left, right in self.examples_moved)
            parts.append(f"{_tokens(self.moved)} with other ids ({_list(shown, self.moved)})")
        return "; ".join(parts)


def _tokens(count: int) -> str:
    return "1 token" if count == 1 else f"{count} tokens"


def _list(shown: Any, count: int) -> str:
    texts = list(shown)
    return ", ".join(texts) + (", …" if count > len(texts) else "")


def read_vocabulary(folder: Path) -> Vocabulary | None:
    """Return the vocabulary of a model folder, or None if it holds no tokenizer.

    Looks at `tokenizer.json`, then `vocab.json`, then `vocab.txt`, each with its added tokens, then at
    a sentencepiece file, which is compared by digest. Raises `RequestError` for a broken file.
    """
    digest = next((_digest(folder / name) for name in _SENTENCEPIECE if (folder / name).is_file()), None)
    for name, reader in (("tokenizer.json", _fast), ("vocab.json", _slow), ("vocab.txt", _lines)):
        path = folder / name
        if path.is_file():
            return Vocabulary(folder, name, reader(path), digest)
    for name in _SENTENCEPIECE:
        if (folder / name).is_file():
            return Vocabulary(folder, name, None, digest)
    return None


def _fast(path: Path) -> dict[str, int]:
    table = read_json(path, _HINT)
    model = table.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocab, list):  # Unigram: [token, score], the id is the place
        if not all(isinstance(row, list) and row and isinstance(row[0], str) for row in vocab):
            raise _broken(path, "model.vocab is not a list of [token, score]")
        vocab = {row[0]: place for place, row in enumerate(vocab)}
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
    tokens = _mapping(path, read_json(path, _HINT), "the file")
    return tokens | _added(path)


def _lines(path: Path) -> dict[str, int]:
    try:
        lines = path.read_bytes().decode("utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise _broken(path, f"cannot be read ({error})") from None
    if lines and not lines[-1]:
        lines.pop()
    return {line.rstrip("\r"): place for place, line in enumerate(lines)} | _added(path)


def _added(path: Path) -> dict[str, int]:
    added = path.with_name("added_tokens.json")
    return _mapping(added, read_json(added, _HINT), "the file") if added.is_file() else {}


def _mapping(path: Path, found: Any, what: str) -> dict[str, int]:
    if isinstance(found, dict):
        if all(type(value) is int for value in found.values()):
            return dict(found)
        if all(isinstance(value, dict) for value in found.values()):  # MMS: one map for each language
            nested = {
                f"{outer} {token}": place for outer, table in found.items() for token, place in table.items()
            }
            return _mapping(path, nested, what)
    raise _broken(path, f"{what} does not map tokens to ids")


def _broken(path: Path, what: str) -> RequestError:
    return RequestError(Problem(what, str(path), _HINT))


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _broken(path, f"cannot be read ({error.strerror})") from None


def compare_vocabularies(a: Vocabulary, b: Vocabulary) -> VocabularyDiff:
    """Return how two vocabularies differ, token by token where both are known, else by digest."""
    if a.tokens is None or b.tokens is None:
        return VocabularyDiff(equal=a.digest is not None and a.digest == b.digest, comparable=False)
    left, right = a.tokens, b.tokens
    if left == right:
        return VocabularyDiff(equal=True, comparable=True)
    only_a = sorted((token for token in left if token not in right), key=left.__getitem__)
    only_b = sorted((token for token in right if token not in left), key=right.__getitem__)
    moved = [
        (token, place, right[token]) for token, place in left.items() if right.get(token, place) != place
    ]
    return VocabularyDiff(
        equal=False,
        comparable=True,
        missing_in_a=len(only_b),
        missing_in_b=len(only_a),
        moved=len(moved),
        examples_missing_in_a=tuple(only_b[:_SHOWN]),
        examples_missing_in_b=tuple(only_a[:_SHOWN]),
        examples_moved=tuple(sorted(moved, key=lambda row: row[1])[:_SHOWN]),
    )
