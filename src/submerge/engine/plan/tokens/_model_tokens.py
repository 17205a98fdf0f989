"""The tokens of one model: as transformers loads its tokenizer, or as its configuration alone names them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from submerge.deferred import required
from submerge.store import load_tokenizer, optional_json, read_json, read_vocabulary, text_parts

__all__ = [
    "ModelTokens",
    "TokenFlags",
    "add_tokens",
    "ids_of_text",
    "placeholder_ids",
    "read_tokens",
    "stored_tokens",
]

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
    """A model's tokens with their ids, in that order, and how those are treated that were added to them.

    `pad` fills up the shorter texts of a batch, where one is known to.
    """

    ids: Mapping[str, int]
    added: Mapping[str, TokenFlags]
    pad: str | None = None


def read_tokens(folder: Path) -> ModelTokens:
    """Return the tokens of the tokenizer in a folder; raise `RequestError` if it cannot be loaded."""
    tokenizer = load_tokenizer(folder)
    names = [flag.name for flag in fields(TokenFlags)]
    flags = {
        str(token): TokenFlags(**{name: getattr(token, name) for name in names})
        for token in tokenizer.added_tokens_decoder.values()
    }
    # the library hands a vocabulary out in an order that changes from run to run
    ids = dict(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))
    return ModelTokens(ids, flags, tokenizer.pad_token)


def stored_tokens(folder: Path) -> ModelTokens:
    """Return the tokens that the files of a folder name, without loading a tokenizer where they name all.

    A `tokenizer.json` does, with what `tokenizer_config.json` adds. Others are loaded by transformers.
    Raises `RequestError` for a file that is broken.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        return read_tokens(folder)
    vocabulary = read_vocabulary(folder)
    assert vocabulary is not None
    assert vocabulary.tokens is not None  # those of the file that is there
    decoder = optional_json(folder / "tokenizer_config.json").get("added_tokens_decoder")
    listed = [*(read_json(path).get("added_tokens") or ()), *(decoder or {}).values()]
    names = [flag.name for flag in fields(TokenFlags)]
    flags = {
        row["content"]: TokenFlags(**{name: row[name] for name in names if type(row.get(name)) is bool})
        for row in reversed(listed)  # what the vocabulary itself says of a token counts
        if isinstance(row, Mapping)
    }
    ids = dict(sorted(vocabulary.tokens.items(), key=lambda item: item[1]))
    return ModelTokens(ids, {text: flags[text] for text in ids if text in flags})


def add_tokens(tokenizer: Any, tokens: Iterable[tuple[str, TokenFlags]]) -> None:
    """Add tokens to a tokenizer of transformers, in this order, as each is to be treated."""
    added_token = required("tokenizers", _NEEDS).AddedToken
    tokenizer.add_tokens([added_token(text, **vars(flags)) for text, flags in tokens])


def ids_of_text(tokens: ModelTokens, config: Mapping[str, Any] | None) -> frozenset[int]:
    """Return the ids of ordinary words, and of what begins, ends, or fills up a text: no input has them."""
    named = [part.get(f"{kind}_token_id") for part in text_parts(config) for kind in _OF_TEXT]
    listed = [id_ for ids in named for id_ in (ids if isinstance(ids, list) else [ids])]
    words = (id_ for text, id_ in tokens.ids.items() if text not in tokens.added)
    return frozenset([*words, *(id_ for id_ in listed if type(id_) is int)])


def placeholder_ids(config: Mapping[str, Any] | None) -> dict[str, int]:
    """Return the ids that a configuration gives to tokens of modalities, by what it calls them: `image`."""
    parts = reversed(text_parts(config))  # what is said outermost counts
    return {kind: id_ for part in parts for kind, id_ in _token_keys(part)}


def _token_keys(part: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for key, id_ in part.items():
        match = _TOKEN_KEY.fullmatch(key)
        # LLaVA's first code wrote −200 for a token that has no row
        if match and match[1] not in _OF_TEXT and type(id_) is int and id_ >= 0:
            yield match[1], id_
