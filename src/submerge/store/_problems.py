"""Small helpers for clear errors: lists cut short, nearest names, and JSON files that may be broken."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from submerge.errors import Problem, RequestError

__all__ = ["examples", "nearest", "read_json", "strict_json"]


def examples(items: Iterable[str], limit: int = 3) -> str:
    """Return the first few items as text: `a, b, c and 7 more`."""
    listed = list(items)
    text = ", ".join(listed[:limit])
    rest = len(listed) - limit
    return f"{text} and {rest} more" if rest > 0 else text


def nearest(name: str, candidates: Sequence[str]) -> str:
    """Return `did you mean 'x'?` for the candidate closest to `name`, or an empty text."""
    close = difflib.get_close_matches(name, candidates, n=1)
    return f"did you mean '{close[0]}'?" if close else ""


def strict_json(raw: bytes) -> Any:
    """Return the value that JSON bytes hold; raise `ValueError` on anything that JSON does not allow.

    Stricter than `json.loads`: UTF-8 only, no key twice, no NaN or Infinity, no lone surrogates in
    keys, no nesting that exhausts the stack.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            keys = [key for key, _ in pairs]
            raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice")
        if escapes:  # a lone surrogate could be neither printed nor written again
            for key in found:
                key.encode("utf-8")
        return found

    escapes = b"\\u" in raw

    def constant(text: str) -> Any:
        raise ValueError(f"{text} is not JSON")

    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=unique, parse_constant=constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json(path: Path, hint: str = "repair the file, or download it again") -> dict[str, Any]:
    """Return the JSON object in a file; raise `RequestError` if it is unreadable or no object."""
    try:
        value = json.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise RequestError(Problem(f"cannot be read ({error.strerror})", str(path), hint)) from None
    except (ValueError, RecursionError) as error:
        raise RequestError(Problem(f"is not valid JSON ({error})", str(path), hint)) from None
    if not isinstance(value, dict):
        raise RequestError(
            Problem(f"holds a JSON {type(value).__name__} where an object is expected", str(path), hint)
        )
    return value
