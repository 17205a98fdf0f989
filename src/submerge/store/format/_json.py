"""JSON files that may be broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from submerge.errors import Problem, RequestError

__all__ = ["lenient_json", "optional_json", "read_json", "strict_json"]

_HINT = "repair the file, or download it again"


def strict_json(raw: bytes) -> Any:
    """Return the value that JSON bytes hold; raise `ValueError` on anything that JSON does not allow.

    Stricter than `json.loads`: UTF-8 only, no key twice, no NaN or Infinity, no lone surrogates in
    keys, no nesting that exhausts the stack.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            keys = [key for key, _ in pairs]
            raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice")
        if escapes:  # a lone surrogate could be neither printed nor written again
            for key in table:
                key.encode("utf-8")
        return table

    escapes = b"\\u" in raw

    def constant(text: str) -> Any:
        raise ValueError(f"{text} is not JSON")

    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=unique, parse_constant=constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json(path: Path, hint: str = _HINT) -> dict[str, Any]:
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


def optional_json(path: Path, hint: str = _HINT) -> dict[str, Any]:
    """Return the JSON object in a file as `read_json`, and an empty one where there is no file."""
    return read_json(path, hint) if path.is_file() else {}


def lenient_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, and an empty one where there is none, or it is broken."""
    try:
        return optional_json(path)
    except (OSError, RequestError):  # a name too long, too; who reads it for more says what is wrong
        return {}
