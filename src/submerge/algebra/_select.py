"""Exact order statistics of a tensor that streams past, without a sort.

To find the k-th largest of N values: sample some, so that two of them bracket the answer with
little between; pass over the tensor once, counting what lies above and collecting what lies
inside; select among the collected. A bracket that misses (unlucky sample) or holds too much
(a huge tensor) is moved or narrowed by another pass: the result is exact either way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, TypeAlias

from submerge.algebra._chunk import Chunk
from submerge.algebra._reduce import Reduction
from submerge.deferred import np, npt, torch

__all__ = ["kth_largest"]

Values: TypeAlias = Callable[[Chunk, int], "torch.Tensor"]
Floats: TypeAlias = "npt.NDArray[Any]"

COLLECT_ALL = 1 << 20
"""Tensors of at most so many elements are collected whole: one pass and a partition."""
COLLECT_MOST = 1 << 20
"""The most values that one pass collects for one rank; above, it keeps every s-th."""
KEPT_BLOCK = 1 << 17
"""Values in one block of those that are collected."""
DEVIATIONS = 4.0
"""Half-width of the first bracket, in standard deviations of the sample's rank."""


@dataclass
class _Search:
    """The bracket of one rank: lo ≤ answer ≤ hi. `rank` is known once `share` has been counted."""

    row: int
    rank: int
    share: float | None
    lo: float = -math.inf
    hi: float = math.inf
    expected: float = math.inf
    answer: float | None = None

    def settle(self, positive: int) -> bool:
        """Fix the rank that a share of the positive values means; return whether it asks for any."""
        self.rank, self.share = int((self.share or 0.0) * positive), None
        if self.rank == 0:
            self.answer = math.inf
        return self.rank > 0


@dataclass
class _Census:
    """Counts around a bracket, and the values (every stride-th) strictly inside, once all are there."""

    above: int
    at_hi: int
    inside: int
    at_lo: int
    positive: int
    values: Floats | None = None


class _Kept:
    """What many chunks leave behind, in a few blocks of one size, in no order.

    Small arrays that stay between the large ones that come and go would splinter the heap, and the
    process would grow with the tensor.
    """

    def __init__(self) -> None:
        self._blocks: list[Floats] = []
        self._free = 0
        self._lock = Lock()

    def add(self, values: Floats) -> None:
        """Copy the values in; called from any thread."""
        with self._lock:
            while len(values):
                if not self._free:
                    self._blocks.append(np.empty(KEPT_BLOCK, values.dtype))
                    self._free = KEPT_BLOCK
                start = KEPT_BLOCK - self._free
                count = min(self._free, len(values))
                self._blocks[-1][start : start + count] = values[:count]
                self._free -= count
                values = values[count:]

    def all(self) -> Floats:
        """Return all values, in one array."""
        if not self._blocks:
            return np.empty(0, np.float32)
        return np.concatenate([*self._blocks[:-1], self._blocks[-1][: KEPT_BLOCK - self._free]])


def _host(values: Values, chunk: Chunk, row: int) -> Floats:
    """Return a row's values as a float array on the CPU, NaN counted as infinitely large."""
    found: Floats = values(chunk, row).cpu().numpy()
    if chunk.finite:
        return found
    return np.nan_to_num(found, copy=True, nan=np.inf, posinf=np.inf, neginf=-np.inf)


class _Collect(Reduction[list[Floats], dict[int, Floats]]):
    """All values of the visited chunks, by row."""

    def __init__(self, values: Values, rows: Sequence[int], sample: bool) -> None:
        self.values = values
        self.rows = rows
        self.sample = sample

    def observe(self, chunk: Chunk) -> list[Floats]:
        """Return a copy of the chunk's values, for the buffers are reused."""
        return [np.array(_host(self.values, chunk, row)) for row in self.rows]

    def combine(self, parts: Sequence[list[Floats]]) -> dict[int, Floats]:
        """Return the values side by side."""
        columns = zip(*parts, strict=True)
        return {row: np.concatenate(column) for row, column in zip(self.rows, columns, strict=True)}


class _Count(Reduction[list[_Census], list[_Census]]):
    """A census around each bracket."""

    def __init__(self, values: Values, searches: Sequence[_Search]) -> None:
        self.values = values
        self.brackets = [
            (s.row, s.lo, s.hi, max(1, math.ceil(s.expected / COLLECT_MOST)), s.share is not None)
            for s in searches
        ]
        self.kept = [_Kept() for _ in searches]

    def observe(self, chunk: Chunk) -> list[_Census]:
        """Collect the chunk's values inside each bracket, and return the counts around it."""
        result = []
        for (row, lo, hi, stride, counted), kept in zip(self.brackets, self.kept, strict=True):
            x = _host(self.values, chunk, row)
            over = x > hi
            above = int(np.count_nonzero(over))
            near = x[np.flatnonzero(np.logical_xor(x >= lo, over, out=over))]  # few, or many that tie
            at_hi = int(np.count_nonzero(near == hi))
            at_lo = int(np.count_nonzero(near == lo)) if lo < hi else 0
            inside = near[(near > lo) & (near < hi)]
            kept.add(inside[::stride])
            positive = int(np.count_nonzero(x > 0)) if counted else 0
            result.append(_Census(above, at_hi, len(inside), at_lo, positive))
        return result

    def combine(self, parts: Sequence[list[_Census]]) -> list[_Census]:
        """Return the censuses of the whole tensor."""
        return [
            _Census(
                sum(c.above for c in column),
                sum(c.at_hi for c in column),
                sum(c.inside for c in column),
                sum(c.at_lo for c in column),
                sum(c.positive for c in column),
                kept.all(),
            )
            for column, kept in zip(zip(*parts, strict=True), self.kept, strict=True)
        ]


def _nth(values: Floats, rank: int) -> float:
    """Return the rank-th largest (from 1) of `values`."""
    at = len(values) - rank
    return float(np.partition(values, at)[at])


def _bracket(sample: Floats, share: float, total: float) -> tuple[float, float, float]:
    """Return (lo, hi, expected count inside) around the value that a share of `sample` exceeds."""
    size = len(sample)
    spread = DEVIATIONS * math.sqrt(max(share * (1 - share), 1 / size) / size)
    ordered = np.sort(sample)[::-1]
    first, last = math.floor((share - spread) * size) - 1, math.ceil((share + spread) * size)
    hi = float(ordered[first]) if first >= 0 else math.inf
    lo = float(ordered[last]) if last < size else -math.inf
    inside = min(last, size) - max(first, 0)
    return lo, hi, total * inside / size


def _advance(search: _Search, census: _Census, count: int) -> None:
    """Settle the search from an exact census of its bracket, or give it the next bracket."""
    if search.share is not None and not search.settle(census.positive):
        return
    assert census.values is not None  # combined
    below = count - census.above - census.at_hi - census.inside - census.at_lo
    rank = search.rank - census.above
    if rank <= 0:  # the answer lies above the bracket
        search.lo, search.hi, search.expected = search.hi, math.inf, census.above
    elif rank <= census.at_hi:
        search.answer = search.hi
    elif (rank := rank - census.at_hi) <= census.inside:
        if len(census.values) == census.inside:
            search.answer = _nth(census.values, rank)
        else:
            lo, hi, expected = _bracket(census.values, rank / census.inside, census.inside)
            search.lo, search.hi = max(lo, search.lo), min(hi, search.hi)
            search.expected = expected
    elif rank - census.inside <= census.at_lo or search.lo == -math.inf:  # (only NaN is below −inf)
        search.answer = search.lo
    else:
        search.lo, search.hi, search.expected = -math.inf, search.lo, below


def kth_largest(
    count: int, ranks: Sequence[Sequence[int | float]], values: Values
) -> Generator[Reduction[Any, Any], Any, list[list[float]]]:
    """Return, for each row of values, its `ranks`-th largest ones over the tensor.

    Use as `found = yield from kth_largest(...)` in a method's plan. `values(chunk, row)` returns a
    float tensor [n], which may be a scratch row. `ranks[row]` holds ranks from 1 (the maximum) to
    `count` (the minimum), where `count` is the tensor's number of elements; or, as a float p in [0,
    1], the rank ⌊p · number of positive values⌋, which is counted on the way (infinity if it is 0).
    NaN counts as infinitely large.

    Examples:
        >>> import torch
        >>> from submerge.algebra import Chunk, kth_largest
        >>> chunk = Chunk(0, torch.tensor([[4.0, -9.0, 2.0, 1.0]]), width=1, finite=True, keys=[0])
        >>> search = kth_largest(4, [[2]], lambda chunk, row: chunk.updates[row].abs())
        >>> reduction = next(search)  # what a plan yields to the engine
        >>> try:
        ...     search.send(reduction.combine([reduction.observe(chunk)]))
        ... except StopIteration as end:
        ...     print(end.value)
        [[4.0]]
    """
    searches = [
        _Search(row, 0, rank) if isinstance(rank, float) else _Search(row, rank, None)
        for row, wanted in enumerate(ranks)
        for rank in wanted
    ]
    rows = [row for row, wanted in enumerate(ranks) if wanted]
    if searches and count <= COLLECT_ALL:
        found = yield _Collect(values, rows, sample=False)
        for search in searches:
            all_ = found[search.row]
            if search.share is None or search.settle(int(np.count_nonzero(all_ > 0))):
                search.answer = _nth(all_, search.rank)
    elif searches:
        sample = yield _Collect(values, rows, sample=True)
        for search in searches:
            some = sample[search.row]
            positive = np.count_nonzero(some > 0) / some.size
            share = search.rank / count if search.share is None else search.share * positive
            search.lo, search.hi, search.expected = _bracket(some, share, count)
    while pending := [s for s in searches if s.answer is None]:
        censuses = yield _Count(values, pending)
        for search, census in zip(pending, censuses, strict=True):
            _advance(search, census, count)
    answers = iter(searches)
    return [[_answer(next(answers)) for _ in wanted] for wanted in ranks]


def _answer(search: _Search) -> float:
    assert search.answer is not None  # the loop above ends only so
    return search.answer
