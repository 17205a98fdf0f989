"""What rows a model gets for tokens of another model's tokenizer that its own lacks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from submerge.arguments import is_count
from submerge.recipe._problems import KeyPath, Report, listed, show

__all__ = ["NEW_TOKEN_METHODS", "NewTokens", "read_new_tokens"]

NEW_TOKEN_METHODS = ("omp", "subword", "mean", "zero")
_KEYS = ("method", "k")


@dataclass(frozen=True)
class NewTokens:
    """How the rows of tokens are approximated that the donor's tokenizer alone has.

    Attributes:
        method: `omp`: the sparse combination of shared tokens that the token is in the donor's table;
            `subword`: the mean of its pieces, as the model's own tokenizer cuts its text; `mean`: the mean of
            all rows; `zero`.
        k: shared tokens in a combination of `omp`, at most.
    """

    method: str = "omp"
    k: int = 64

    def written(self) -> dict[str, Any]:
        """Return the mapping that a recipe has."""
        return {"method": self.method} | ({"k": self.k} if self.method == "omp" else {})


def read_new_tokens(raw: Any, source: str | None, report: Report) -> NewTokens | None:
    """Return what a recipe says of new tokens: the name of a method, or a mapping `{method, k}`."""
    path: KeyPath = ("tokenizer", "new_tokens")
    if raw is None:
        return None
    if source in (None, "base", "union"):
        what = "new_tokens are those of another model's tokenizer, and the source is none"
        report.add(what, path, "name the donor as the source")
    given = {"method": raw} if isinstance(raw, str) else raw
    if not isinstance(given, dict):
        report.add(f"'new_tokens' is a method or a mapping, not {show(raw)}", path, "write {method: omp}")
        return None
    report.check_keys(given, _KEYS, path)
    method, k = given.get("method", NewTokens.method), given.get("k", NewTokens.k)
    if method not in NEW_TOKEN_METHODS:
        what = f"the method for new tokens is {show(method)}"
        report.add(what, (*path, "method"), f"one of {listed(NEW_TOKEN_METHODS)}")
        method = NewTokens.method
    elif method != "omp" and "k" in given:
        report.add(f"k is of the method omp, and not of {method}", (*path, "k"), "leave it out")
    if not is_count(k):
        report.add(f"k is a positive whole number, not {show(k)}", (*path, "k"), "write 64")
        k = NewTokens.k
    return NewTokens(method, k)
