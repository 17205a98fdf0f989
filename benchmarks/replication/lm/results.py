"""Results of a suite as seed -> row -> result, as its reports walk through them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["by_row", "each", "names_of"]


def each(seeds: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """Return a row's results, one for each seed that has it."""
    return [rows[name] for rows in seeds.values() if name in rows]


def names_of(seeds: Mapping[str, Any]) -> list[str]:
    """Return the rows that any seed has, in their order."""
    return list(dict.fromkeys(name for rows in seeds.values() for name in rows))


def by_row(seeds: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return row -> its results."""
    return {name: each(seeds, name) for name in names_of(seeds)}
