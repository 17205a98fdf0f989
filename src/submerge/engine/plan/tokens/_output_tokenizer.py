"""The tokenizer of the output: the files of one model, and tokens that others have besides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from submerge.deferred import required
from submerge.engine.plan.tokens._model_tokens import ModelTokens, TokenFlags
from submerge.errors import Problem, RequestError, few, first_line
from submerge.store import Tokenizer, load_tokenizer

__all__ = ["PLAIN", "OutputTokenizer", "extend_tokenizer", "fast_backend", "united_tokens"]

PLAIN = TokenFlags(special=False, normalized=True)
"""How a token is treated that no tokenizer treats in a way of its own."""
_NEEDS = "a tokenizer that gets tokens needs"


@dataclass(frozen=True)
class OutputTokenizer:
    """The tokenizer of the output.

    Attributes:
        files: those that are copied.
        ids: all tokens with their ids.
        added: the tokens that the files lack, by their ids, and how each is treated.
        text: what `tokenizer.json` is to hold; None where it is copied as it is.
        kind: the class that `tokenizer_config.json` is to name; None where it stays what it is.
        unreached: those of `added` that their own text is not cut into.
    """

    files: Tokenizer
    ids: Mapping[str, int]
    added: Mapping[str, TokenFlags] = field(default_factory=dict)
    text: str | None = None
    kind: str | None = None
    unreached: tuple[str, ...] = ()


def united_tokens(
    own: ModelTokens, others: Sequence[tuple[str, ModelTokens]]
) -> tuple[dict[str, TokenFlags], list[str]]:
    """Return the tokens that a tokenizer lacks and others have, in the order in which they get ids.

    Those that are a model's own pieces come first, model by model and by their ids, and then those that were
    added to one, also if they are pieces of the tokenizer. Where two models treat an added token in two ways
    the first counts, with a warning.
    """
    plain: dict[str, TokenFlags] = {}
    added: dict[str, TokenFlags] = {}
    warnings = []
    for label, theirs in others:
        first = {**added, **own.added}
        otherwise = [text for text, flags in theirs.added.items() if first.get(text, flags) != flags]
        if otherwise:
            what = f"{few(map(repr, otherwise))} treated as in an earlier model"
            warnings.append(f"{label}: {what}, whose tokenizer splits or strips otherwise")
        added |= {text: flags for text, flags in theirs.added.items() if text not in added}
        pieces = [t for t in theirs.ids if t not in theirs.added and t not in own.ids and t not in plain]
        if pieces:
            plain |= dict.fromkeys(pieces, PLAIN)
            what = f"{len(pieces)} of its tokenizer's own pieces ({few(map(repr, pieces))})"
            warnings.append(f"{label}: {what} become added tokens: no merges of its tokenizer are taken")
    tokens = {text: flags for text, flags in plain.items() if text not in added}
    tokens |= {text: flags for text, flags in added.items() if text not in own.added}
    return tokens, warnings


def extend_tokenizer(files: Tokenizer, own: ModelTokens, tokens: Mapping[str, TokenFlags]) -> OutputTokenizer:
    """Return a tokenizer that has these tokens besides, with the ids that follow its own.

    Raises `RequestError` where a tokenizer cannot be extended.
    """
    if not tokens:
        return OutputTokenizer(files, own.ids)
    backend = fast_backend(files.folder)
    known = backend.get_vocab(with_added_tokens=True)
    beside = {text: own.added.get(text, PLAIN) for text in own.ids if text not in known}
    token_of = required("tokenizers", _NEEDS).AddedToken
    backend.add_tokens([token_of(text, **vars(flags)) for text, flags in (beside | dict(tokens)).items()])
    ids = dict(sorted(backend.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1]))
    moved = [text for text, id_ in own.ids.items() if ids.get(text) != id_]
    if moved or len(set(ids.values())) < len(ids):
        what = f"new tokens would get ids that others have ({few(map(repr, moved)) or 'its ids have holes'})"
        raise RequestError(Problem(what, str(files.folder), "save the tokenizer with ids without a hole"))
    added = {text: tokens[text] for text in ids if text in tokens}
    written = backend.to_str(pretty=True)
    backend.no_padding()  # of a file that was saved with a length for all texts
    backend.no_truncation()
    encoded = {text: backend.encode(text, add_special_tokens=False).ids for text in added}
    unreached = tuple(text for text in added if encoded[text] != [ids[text]])
    return OutputTokenizer(files, ids, added, written, unreached=unreached)


def fast_backend(folder: Path) -> Any:
    """Return the tokenizer of a folder, of a class of the library `tokenizers`."""
    library, path = required("tokenizers", _NEEDS), folder / "tokenizer.json"
    if path.is_file():
        try:
            return library.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing else for a file that it cannot read
            what = f"tokenizers cannot read it ({first_line(error)})"
            raise RequestError(Problem(what, str(path), "repair the file")) from error
    backend = getattr(load_tokenizer(folder), "backend_tokenizer", None)
    if backend is None:
        hint = "save it with transformers as a fast tokenizer, which writes tokenizer.json"
        raise RequestError(Problem("no tokens can be added to a tokenizer of this kind", str(folder), hint))
    return backend
