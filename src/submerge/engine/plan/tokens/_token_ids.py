"""The ids that configurations give to tokens, after tokens got other ids or are there no more."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["lost_token_ids", "with_token_ids"]

_TOKEN_IDS = re.compile(r"\w+_token_(?:ids?|index)|(?:begin_)?suppress_tokens")


def with_token_ids(
    part: Mapping[str, Any], ids: Mapping[int, int | None], instead: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return a part of a configuration with the ids that its tokens have now.

    `ids` has None for a token that is there no more. It leaves a list of ids; where none is left, what
    `instead` has under the same key counts, or nothing.
    """

    def renumbered(value: Any) -> Any:
        if isinstance(value, list):
            return [id_ for id_ in map(renumbered, value) if id_ is not None]
        return ids.get(value, value) if type(value) is int else value

    def of_key(key: str, value: Any) -> Any:
        if not _TOKEN_IDS.fullmatch(key):
            return value
        now = renumbered(value)
        is_lost = now in (None, []) and value not in (None, [])
        return (instead or {}).get(key) if is_lost else now

    return {key: of_key(key, value) for key, value in part.items()}


def lost_token_ids(part: Mapping[str, Any], ids: Mapping[int, int | None]) -> Iterator[tuple[str, int]]:
    """Yield the ids, with their keys, of tokens that are there no more."""
    for key, value in part.items():
        named = (value if isinstance(value, list) else [value]) if _TOKEN_IDS.fullmatch(key) else []
        yield from ((key, id_) for id_ in named if type(id_) is int and ids.get(id_, id_) is None)
