"""Numbers of inputs, among arguments that may be anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from submerge.arguments import is_count
from submerge.errors import Problem, RequestError

__all__ = ["check_counts"]


def check_counts(counts: Mapping[str, Any]) -> None:
    """Raise `RequestError` with all arguments that are no whole numbers from 1 on; None is left out."""
    wrong = {name: n for name, n in counts.items() if n is not None and not is_count(n)}
    what = "is no whole number from 1"
    if problems := [Problem(f"{n!r} {what}", name, "give such as 16") for name, n in wrong.items()]:
        raise RequestError(problems)
