"""Two reductions in one pass."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, TypeVar

from submerge.algebra import Chunk, Reduction

__all__ = ["alongside"]

T = TypeVar("T")
R = TypeVar("R")


class _Both(Reduction[tuple[Any, Any], tuple[Any, Any]]):
    """The results of two reductions over all of a tensor, neither of which overwrites the updates."""

    def __init__(self, first: Reduction[Any, Any], second: Reduction[Any, Any]) -> None:
        self.first, self.second = first, second

    def observe(self, chunk: Chunk) -> tuple[Any, Any]:
        """Return what the chunk contributes to each."""
        return self.first.observe(chunk), self.second.observe(chunk)

    def combine(self, parts: Sequence[tuple[Any, Any]]) -> tuple[Any, Any]:
        """Return both results."""
        first, second = zip(*parts, strict=True)
        return self.first.combine(first), self.second.combine(second)


def alongside(
    search: Generator[Reduction[Any, Any], Any, T], reduction: Reduction[Any, R]
) -> Generator[Reduction[Any, Any], Any, tuple[T, R]]:
    """Return what a search returns, and the result of a reduction that is made in its first complete pass.

    A search that makes none gets one for the reduction alone.
    """
    answer: Any = None
    results: list[R] = []
    while True:
        try:
            step = search.send(answer)
        except StopIteration as end:
            return end.value, results[0] if results else (yield reduction)
        if step.sample or results:
            answer = yield step
        else:
            answer, result = yield _Both(step, reduction)
            results.append(result)
