"""The tokenizer of a folder: its files, its vocabulary, token → id, and how two of them differ."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from submerge.errors import Problem, RequestError
from submerge.store.format import read_json

__all__ = [
    "Tokenizer",
    "Vocabulary",
    "VocabularyDiff",
    "compare_vocabularies",
    "is_tokenizer_file",
    "read_vocabulary",
]

_SENTENCEPIECE = (
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "sentencepiece.model",
    "spm.model",
    "spm_char.model",
    "source.spm",
    "target.spm",
)
_VOCABULARIES = frozenset(
    {
        "tokenizer.json",
        "vocab.json",
        "vocab.txt",
        "tokenizer.model.v3",
        "tekken.json",
        *_SENTENCEPIECE,
    }
)
_BESIDE_THEM = frozenset(
    {
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "merges.txt",
        "bpe.codes",
        "dict.txt",
        "target_vocab.json",
        "entity_vocab.json",
        "normalizer.json",
        "emoji.json",
        "byte_maps.json",
        "word_shape.json",
        "word_pronunciation.json",
        "chat_template.json",
        "chat_template.jinja",
    }
)
_TEMPLATES = "additional_chat_templates"
_HINT = "repair the file, or take the tokenizer of another model"
_SHOWN = 5


def is_tokenizer_file(path: PurePath) -> bool:
    """Return True if a file, by its path inside a model's folder, is its tokenizer's; chat templates are."""
    if path.parent.parts:
        return path.parent.parts == (_TEMPLATES,)
    return path.name in _BESIDE_THEM or _is_vocabulary(path)


def _is_vocabulary(path: PurePath) -> bool:
    return path.name in _VOCABULARIES or path.suffix == ".tiktoken"


@dataclass(frozen=True)
class Tokenizer:
    """The tokenizer's files in a folder, by their paths inside; `links` says why some must not be carried."""

    folder: Path
    files: tuple[Path, ...] = ()
    links: Mapping[Path, Problem] = field(default_factory=dict)

    @classmethod
    def among(cls, folder: Path, files: Iterable[Path], links: Mapping[Path, Problem]) -> Tokenizer:
        """Return the tokenizer of a folder, among all files beside its weights."""
        own = tuple(filter(is_tokenizer_file, files))
        return cls(folder, own, {file: why for file, why in links.items() if is_tokenizer_file(file)})

    @property
    def complete(self) -> bool:
        """Whether there are tokens, and not only a template or settings."""
        return any(map(_is_vocabulary, (*self.files, *self.links)))


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
        found = {token: place for token, place in known.items() if place >= rows}
        if self.pieces is not None and self.pieces > rows:
            found[f"pieces {rows} to {self.pieces - 1} of {self.file}"] = self.pieces - 1
        return dict(sorted(found.items(), key=lambda item: item[1]))


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

    @property
    def within_a(self) -> bool:
        """Whether the first has all tokens of the second, with the same ids."""
        return self.equal or (self.comparable and not self.missing_in_a and not self.moved)

    @property
    def within_b(self) -> bool:
        """Whether the second has all tokens of the first, with the same ids."""
        return self.equal or (self.comparable and not self.missing_in_b and not self.moved)

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

    Looks at `tokenizer.json`, then `vocab.json`, then `vocab.txt`, then at a sentencepiece file, which is
    compared by digest; each with the tokens that `added_tokens.json` and `tokenizer_config.json` add. Raises
    `RequestError` for a broken file.
    """
    pieces = next((folder / name for name in _SENTENCEPIECE if (folder / name).is_file()), None)
    digest = None if pieces is None else _digest(pieces)
    if (path := folder / "tokenizer.json").is_file():
        return Vocabulary(folder, path.name, _added(folder) | _fast(path), digest)
    for name, reader in (("vocab.json", _slow), ("vocab.txt", _lines)):
        if (path := folder / name).is_file():
            return Vocabulary(folder, name, reader(path) | _added(folder), digest)
    if pieces is None:
        return None
    return Vocabulary(folder, pieces.name, None, digest, _added(folder), _count_pieces(pieces))


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
    return _mapping(path, read_json(path, _HINT), "the file")


def _lines(path: Path) -> dict[str, int]:
    try:
        lines = path.read_bytes().decode("utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise _broken(path, f"cannot be read ({error})") from None
    if lines and not lines[-1]:
        lines.pop()
    return {line.rstrip("\r"): place for place, line in enumerate(lines)}


def _added(folder: Path) -> dict[str, int]:
    """Return the tokens that the files beside a vocabulary add to it, the newer spelling first."""
    config, older = folder / "tokenizer_config.json", folder / "added_tokens.json"
    found = _mapping(older, read_json(older, _HINT), "the file") if older.is_file() else {}
    added = read_json(config, _HINT).get("added_tokens_decoder") if config.is_file() else None
    if added is None:
        return found
    try:
        return found | {_content(token): int(place) for place, token in added.items()}
    except (AttributeError, KeyError, TypeError, ValueError):
        raise _broken(config, "added_tokens_decoder does not map ids to tokens") from None


def _content(token: Any) -> str:
    return token if isinstance(token, str) else str(token["content"])


def _count_pieces(path: Path) -> int | None:
    """Return how many pieces a sentencepiece model holds; None for a file of another form.

    The model is a protocol buffer, and each piece a field 1 of it.
    """
    data = path.read_bytes()
    at, pieces = 0, 0
    try:
        while at < len(data):
            tag, at = _varint(data, at)
            if tag & 7 == 2:
                length, at = _varint(data, at)
                at += length
            elif tag & 7 == 0:
                _, at = _varint(data, at)
            else:
                at += {1: 8, 5: 4}[tag & 7]
            pieces += tag >> 3 == 1
    except (IndexError, KeyError):
        return None
    return pieces if at == len(data) and pieces else None


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a number of seven bits a byte, the lowest first, and where it ends."""
    value = shift = 0
    while data[at] & 128:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
    return value | data[at] << shift, at + 1


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
        alike = a.tokens is not None or b.tokens is not None or a.added == b.added
        return VocabularyDiff(equal=a.digest is not None and a.digest == b.digest and alike, comparable=False)
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
