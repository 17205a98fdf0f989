"""What the tokens of a tokenizer stand for, however it writes them: by this, two tokenizers are compared."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from submerge.engine.plan.tokens._model_tokens import ModelTokens
from submerge.engine.plan.tokens._output_tokenizer import fast_backend
from submerge.store import byte_characters, optional_json, read_json

__all__ = ["SPECIAL_ROLES", "TokenKey", "TokenKeys", "token_keys", "token_text"]

TokenKey: TypeAlias = bytes | str
"""The bytes of text that a token stands for; or a special token's own text, as str."""
SPECIAL_ROLES = ("bos", "eos", "unk", "pad", "sep", "cls", "mask")
"""What special tokens are for, as transformers calls them."""
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "▁"


@dataclass(frozen=True)
class TokenKeys:
    """The tokens of a model by what they stand for.

    Attributes:
        folder: where its tokenizer lies.
        ids: the id of each key; of several tokens that stand for the same the first that is no byte's.
        keys: the key of each token's id.
        roles: the special tokens by their roles, as their texts.
        style: how the tokenizer writes tokens: `bytes`, `spaces`, `words` or `plain`.
        unknown: the id of the token for what no other token stands for.
    """

    folder: Path
    ids: Mapping[TokenKey, int]
    keys: Mapping[int, TokenKey]
    roles: Mapping[str, str] = field(default_factory=dict)
    style: str = "plain"
    unknown: int | None = None

    def find(self, key: TokenKey, roles: Mapping[str, str]) -> int | None:
        """Return the id of a token of another tokenizer, whose special tokens have these `roles`.

        A special token is one of the same text, or else the one of the same role.
        """
        if key in self.ids or isinstance(key, bytes):
            return self.ids.get(key)
        named = (self.roles[role] for role, text in roles.items() if text == key and role in self.roles)
        return next((self.ids[text] for text in named if text in self.ids), None)

    def pieces(self, key: TokenKey) -> list[int]:
        """Return the ids of the tokens that the model's own tokenizer cuts a text into; those of its bytes,
        where it is no text; none where it has no tokens for it.
        """
        data = key.encode() if isinstance(key, str) else key
        try:
            text = data.decode()
        except UnicodeDecodeError:
            text = ""
        cut = [token.id for token in self._cut(text) if token.id != self.unknown]
        if cut:
            return cut
        of_bytes = [self.ids.get(bytes([byte])) for byte in data]
        return [id_ for id_ in of_bytes if id_ is not None] if None not in of_bytes else []

    def _cut(self, text: str) -> list[Any]:
        """Return the tokens of a text: as part of a longer one, so that no space is put before it."""
        written = {
            "bytes": lambda: "".join(byte_characters()[byte] for byte in text.encode()),
            "spaces": lambda: text.replace(" ", _SPACE),
            "words": lambda: text.strip(),
            "plain": lambda: text,
        }[self.style]()
        return list(self._model.tokenize(written)) if written else []

    @cached_property
    def _model(self) -> Any:
        return fast_backend(self.folder).model


def token_keys(folder: Path, tokens: ModelTokens) -> TokenKeys:
    """Return what the tokens of a folder's tokenizer stand for.

    Byte-level BPE writes each byte as a letter (`Ġ` is a space), SentencePiece writes a space as `▁` and a
    byte as `<0x0A>`, and WordPiece marks what continues a word, in the place of what begins one (`##ing`).
    Added tokens are written as they are. Raises `RequestError` for a tokenizer that cannot be read.
    """
    path = folder / "tokenizer.json"
    content = read_json(path) if path.is_file() else json.loads(fast_backend(folder).to_str())
    style, prefix = _style(content)
    read = _READERS[style](prefix)
    keys: dict[int, TokenKey] = {}
    for text, id_ in tokens.ids.items():
        flags = tokens.added.get(text)
        keys[id_] = read(text) if flags is None else text if flags.special else text.encode()
    is_byte = {id_ for text, id_ in tokens.ids.items() if style == "spaces" and _BYTE.fullmatch(text)}
    ordered = sorted(keys, key=lambda id_: (id_ not in is_byte, -id_))  # what comes last counts
    ids = {keys[id_]: id_ for id_ in ordered}
    roles = {role: text for role, text in _roles(folder) if text in ids}
    return TokenKeys(folder, ids, keys, roles, style, _unknown(content, tokens.ids))


def _style(content: Mapping[str, Any]) -> tuple[str, str]:
    """Return how a tokenizer writes tokens, and what stands before those that continue a word."""
    model = content.get("model") or {}
    kinds = set(_kinds([content.get("pre_tokenizer"), content.get("decoder"), content.get("normalizer")]))
    if "ByteLevel" in kinds:
        return "bytes", ""
    if model.get("type") == "WordPiece":
        return "words", str(model.get("continuing_subword_prefix") or "##")
    vocabulary = model.get("vocab") or ()
    texts = vocabulary if isinstance(vocabulary, dict) else (row[0] for row in vocabulary)
    has_spaces = "Metaspace" in kinds or any(text.startswith(_SPACE) for text in texts)
    return ("spaces" if has_spaces else "plain"), ""


def _unknown(content: Mapping[str, Any], ids: Mapping[str, int]) -> int | None:
    """Return the id of the token for what no other stands for: named by its id (Unigram), or by its text."""
    model = content.get("model") or {}
    by_id, text = model.get("unk_id"), model.get("unk_token")
    return by_id if isinstance(by_id, int) else ids.get(text) if isinstance(text, str) else None


def _kinds(part: Any) -> Iterator[str]:
    """Yield the types of all steps in a part of `tokenizer.json`."""
    if isinstance(part, Mapping):
        if isinstance(kind := part.get("type"), str):
            yield kind
        part = list(part.values())
    if isinstance(part, list):
        for inner in part:
            yield from _kinds(inner)


def _read_bytes(prefix: str) -> Callable[[str], bytes]:
    values = {letter: byte for byte, letter in enumerate(byte_characters())}

    def read(text: str) -> bytes:
        known = all(letter in values for letter in text)
        return bytes(values[letter] for letter in text) if known else text.encode()

    return read


def _read_spaces(prefix: str) -> Callable[[str], bytes]:
    def read(text: str) -> bytes:
        byte = _BYTE.fullmatch(text)
        return bytes.fromhex(byte[1]) if byte else text.replace(_SPACE, " ").encode()

    return read


def _read_words(prefix: str) -> Callable[[str], bytes]:
    def read(text: str) -> bytes:
        return (text.removeprefix(prefix) if text.startswith(prefix) else f" {text}").encode()

    return read


_READERS: Mapping[str, Callable[[str], Callable[[str], bytes]]] = {
    "bytes": _read_bytes,
    "spaces": _read_spaces,
    "words": _read_words,
    "plain": lambda _: str.encode,
}


def _roles(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the roles of special tokens, with their texts, as the files beside a tokenizer name them."""
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        content = optional_json(folder / name)
        for role in SPECIAL_ROLES:
            if (text := token_text(content.get(f"{role}_token"))) is not None:
                yield role, text


def token_text(token: object) -> str | None:
    """Return the text of a token, which configurations write as it is, or with its flags."""
    text = token.get("content") if isinstance(token, Mapping) else token
    return text if isinstance(text, str) else None
