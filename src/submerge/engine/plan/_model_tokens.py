"""The tokens of one model: as transformers loads its tokenizer, or as its configuration alone names them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from submerge.deferred import quietly, required
from submerge.errors import Problem, RequestError
from submerge.store import with_text_parts

__all__ = ["ModelTokens", "TokenFlags", "add_tokens", "load_tokenizer", "placeholder_ids", "read_tokens"]

_NEEDS = "the tokenizer of a composed model needs"
_TOKEN_KEY = re.compile(r"(\w+)_token_(?:id|index)")
_OF_TEXT = frozenset(
    {"bos", "eos", "pad", "unk", "sep", "cls", "mask", "decoder_start", "forced_bos", "forced_eos"}
)
"""What a configuration calls the tokens that say nothing of a modality."""


@dataclass(frozen=True)
class TokenFlags:
    """How a tokenizer treats an added token, by the names that transformers has for it."""

    special: bool = True
    normalized: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


@dataclass(frozen=True)
class ModelTokens:
    """A model's tokens with their ids, in that order, and how those are treated that were added to them."""

    ids: Mapping[str, int]
    added: Mapping[str, TokenFlags]


def load_tokenizer(folder: Path) -> Any:
    """Return the tokenizer of a folder, as transformers loads it.

    Raises `RequestError` where transformers is missing or cannot load it.
    """
    transformers = required("transformers", _NEEDS)
    try:
        with quietly(transformers.logging):
            return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # of any kind: a broken file fails where the library first trips over it
        what = f"transformers cannot load the tokenizer ({str(error).strip().partition(chr(10))[0]})"
        raise RequestError(Problem(what, str(folder), "repair its files, or copy the base's")) from error


def read_tokens(folder: Path) -> ModelTokens:
    """Return the tokens of the tokenizer in a folder; raise `RequestError` if it cannot be loaded."""
    tokenizer = load_tokenizer(folder)
    names = [flag.name for flag in fields(TokenFlags)]
    flags = {
        str(token): TokenFlags(**{name: getattr(token, name) for name in names})
        for token in tokenizer.added_tokens_decoder.values()
    }
    # the library hands a vocabulary out in an order that changes from run to run
    return ModelTokens(dict(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])), flags)


def add_tokens(tokenizer: Any, tokens: Iterable[tuple[str, TokenFlags]]) -> None:
    """Add tokens to a tokenizer of transformers, in this order, as each is to be treated."""
    added_token = required("tokenizers", _NEEDS).AddedToken
    tokenizer.add_tokens([added_token(text, **vars(flags)) for text, flags in tokens])


def placeholder_ids(config: Mapping[str, Any] | None) -> dict[str, int]:
    """Return the ids that a configuration gives to tokens of modalities, by what it calls them: `image`."""
    placeholders: dict[str, int] = {}

    def note(part: Mapping[str, Any]) -> Mapping[str, Any]:
        for kind, id_ in _token_keys(part):
            if id_ >= 0:  # LLaVA's first code wrote −200 for a token that has no row
                placeholders.setdefault(kind, id_)
        return part

    with_text_parts(config or {}, note)
    return placeholders


def _token_keys(part: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for key, id_ in part.items():
        match = _TOKEN_KEY.fullmatch(key)
        if match and match[1] not in _OF_TEXT and type(id_) is int:
            yield match[1], id_
