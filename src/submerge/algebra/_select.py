"""Exact order statistics of a tensor that streams past, without a sort.

To find the k-th largest of N values: sample some, so that two of them bracket the answer with little
between; pass over the tensor once, counting what lies above and collecting what lies inside; select among
the collected (Floyd & Rivest 1975, with passes in the place of partitions). A bracket that misses (unlucky
sample) or holds too much (a huge tensor) is moved or narrowed by another pass: the result is exact either
way.
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
from submerge.kernels import count_above, count_around

__all__ = ["kth_largest"]

RowValues: TypeAlias = Callable[[Chunk, int], "npt.NDArray[Any] | torch.Tensor"]
"""Maps a chunk and a row to the values [n] that are searched."""
Floats: TypeAlias = "npt.NDArray[Any]"

COLLECT_ALL = 1 << 20
"""Of tensors of at most so many elements all values are collected: one pass and a partition."""
PARTITION_MOST, SORTED = 1 << 16, 1 << 15
"""Up to so many collected values are partitioned at once; of more, about so many are sorted first."""
COLLECT_MOST = 1 << 20
"""The most values that one pass collects for one rank; above, it keeps every s-th."""
STRIDE = 3
"""Every third value of the sample's runs brackets the answer: neighbours are alike, and to sort all of them
takes longer than the narrower bracket saves."""
BLOCK = 1 << 17
"""Values in one block of those that are collected."""
INSIDE = -2
"""The scratch row for the values inside a bracket; folds count theirs from 0."""
DEVIATIONS = 4.0
"""Half-width of the first bracket, in standard deviations of the sample's rank: one in 16 000 misses."""


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

    def fix_rank(self, positive: int) -> None:
        """Turn a share of the positive values, now that they are counted, into a rank."""
        if self.share is None:
            return
        self.rank, self.share = int(self.share * positive), None
        if self.rank == 0:
            self.answer = math.inf


@dataclass(frozen=True)
class _Bracket:
    """What one pass looks at for a search: every stride-th value inside is collected."""

    row: int
    lo: float
    hi: float
    stride: int
    counts_positive: bool

    @classmethod
    def of(cls, search: _Search) -> _Bracket:
        stride = max(1, math.ceil(search.expected / COLLECT_MOST))
        return cls(search.row, search.lo, search.hi, stride, search.share is not None)


@dataclass
class _Census:
    """Counts around a bracket, and the values (every stride-th) strictly inside, once all are there."""

    above: int
    at_hi: int
    inside: int
    at_lo: int
    positive: int
    values: Floats | None = None


class _Collected:
    """The values that many chunks contribute, in a few blocks of one size, in no order.

    An array for each chunk would be simpler. But small arrays that stay, between large ones that come and
    go, fragment the heap, and the process would grow with the tensor.
    """

    def __init__(self) -> None:
        self._blocks: list[Floats] = []
        self._free = 0
        self._lock = Lock()

    def add(self, values: Floats) -> None:
        """Copy the values in; called from any thread."""
        with self._lock:
            while len(values):
                if not self._free:  # places in the last block
                    self._blocks.append(np.empty(BLOCK, values.dtype))
                    self._free = BLOCK
                start = BLOCK - self._free
                count = min(self._free, len(values))
                self._blocks[-1][start : start + count] = values[:count]
                self._free -= count
                values = values[count:]

    def all(self) -> Floats:
        """Return all values, in one array."""
        if not self._blocks:
            return np.empty(0, np.float32)
        return np.concatenate([*self._blocks[:-1], self._blocks[-1][: BLOCK - self._free]])


def _host(values: RowValues | None, chunk: Chunk, row: int) -> Floats:
    """Return a row's values as a float array on the CPU, NaN counted as infinitely large.

    Without a function they are the updates, whose magnitudes are searched.
    """
    found = values(chunk, row) if values else chunk.values[row]
    on_host = found if isinstance(found, np.ndarray) else found.cpu().numpy()
    if chunk.finite:
        return on_host
    return np.nan_to_num(on_host, copy=True, nan=np.inf, posinf=np.inf, neginf=-np.inf)


class _Collect(Reduction[list[Floats], dict[int, Floats]]):
    """All values of the visited chunks, by row."""

    def __init__(self, values: RowValues | None, rows: Sequence[int], sample: bool) -> None:
        self.values = values
        self.rows = rows
        self.sample = sample
        self.stride = STRIDE if sample else 1

    def observe(self, chunk: Chunk) -> list[Floats]:
        """Return a copy of the chunk's values, for the buffers are reused."""
        copy = np.array if self.values else np.abs
        return [copy(_host(self.values, chunk, row)[:: self.stride]) for row in self.rows]

    def combine(self, parts: Sequence[list[Floats]]) -> dict[int, Floats]:
        """Return the values side by side."""
        columns = zip(*parts, strict=True)
        return {row: np.concatenate(column) for row, column in zip(self.rows, columns, strict=True)}


class _Count(Reduction[list[_Census], list[_Census]]):
    """A census around each bracket."""

    def __init__(self, values: RowValues | None, searches: Sequence[_Search]) -> None:
        self.values = values
        self.brackets = [_Bracket.of(search) for search in searches]
        self.collected = [_Collected() for _ in searches]

    def observe(self, chunk: Chunk) -> list[_Census]:
        """Collect the chunk's values inside each bracket, and return the counts around it."""
        row, x, censuses = -1, np.empty(0), []
        for bracket, collected in zip(self.brackets, self.collected, strict=True):
            if bracket.row != row:
                row, x = bracket.row, _host(self.values, chunk, bracket.row)
            censuses.append(_count(x, self.values is None, bracket, collected, chunk.row(INSIDE)))
        return censuses

    def combine(self, parts: Sequence[list[_Census]]) -> list[_Census]:
        """Return the censuses of the whole tensor."""
        return [
            _Census(
                sum(c.above for c in column),
                sum(c.at_hi for c in column),
                sum(c.inside for c in column),
                sum(c.at_lo for c in column),
                sum(c.positive for c in column),
                collected.all(),
            )
            for column, collected in zip(zip(*parts, strict=True), self.collected, strict=True)
        ]


def _count(x: Floats, magnitudes: bool, bracket: _Bracket, collected: _Collected, inside: Floats) -> _Census:
    """Return the census of a chunk's values, or their magnitudes; collect every stride-th of those inside."""
    lo, hi = x.dtype.type(bracket.lo), x.dtype.type(bracket.hi)
    above_hi, from_hi, above_lo, from_lo = count_around(x, lo, hi, inside, magnitudes)
    positive = 0
    if bracket.counts_positive:
        positive = count_above(np.abs(x) if magnitudes else x, x.dtype.type(0))
    if lo == hi:
        return _Census(above_hi, from_hi - above_hi, 0, 0, positive)
    collected.add(inside[: above_lo - from_hi : bracket.stride])
    return _Census(above_hi, from_hi - above_hi, above_lo - from_hi, from_lo - above_lo, positive)


def _nth(values: Floats, rank: int) -> float:
    """Return the rank-th largest (from 1) of `values`."""
    at = len(values) - rank
    return float(np.partition(values, at)[at])


def _bracket(sample: Floats, share: float, total: float) -> tuple[float, float, float]:
    """Return (lo, hi, expected count inside) around the value that a share of an ascending sample exceeds."""
    size = len(sample)
    spread = DEVIATIONS * math.sqrt(max(share * (1 - share), 1 / size) / size)
    first, last = math.floor((share - spread) * size) - 1, math.ceil((share + spread) * size)
    hi = float(sample[size - 1 - first]) if first >= 0 else math.inf
    lo = float(sample[size - 1 - last]) if last < size else -math.inf
    inside = min(last, size) - max(first, 0)
    return lo, hi, total * inside / size


def _advance(search: _Search, census: _Census, count: int) -> None:
    """Answer the search from an exact census of its bracket, or give it the next bracket.

    Ranks count from the top, so the cases follow one another downwards: above the bracket, its upper end,
    inside, its lower end, below. Each takes off the rank what it has passed.
    """
    search.fix_rank(census.positive)
    if search.answer is not None:
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
        else:  # every s-th value was kept: a sample of the bracket, and much better than the first
            lo, hi, expected = _bracket(np.sort(census.values), rank / census.inside, census.inside)
            search.lo, search.hi = max(lo, search.lo), min(hi, search.hi)
            search.expected = expected
    elif rank - census.inside <= census.at_lo or search.lo == -math.inf:  # (only NaN is below −inf)
        search.answer = search.lo
    else:
        search.lo, search.hi, search.expected = -math.inf, search.lo, below


def _answer_directly(search: _Search, values: Floats) -> None:
    """Answer the search from all of the row's values, by the same steps where there are many.

    Introselect alone takes several times as long, most of all where many values are equal.
    """
    if len(values) <= PARTITION_MOST:
        search.fix_rank(int(np.count_nonzero(values > 0)))
        if search.answer is None:
            search.answer = _nth(values, search.rank)
        return
    _first_bracket(search, np.sort(values[:: max(1, len(values) // SORTED)]), len(values))
    inside = np.empty_like(values)
    while search.answer is None:
        collected = _Collected()
        census = _count(values, False, _Bracket.of(search), collected, inside)
        census.values = collected.all()
        _advance(search, census, len(values))


def _first_bracket(search: _Search, sample: Floats, count: int) -> None:
    """Bracket the answer by a sample of the row's `count` values, which ascends."""
    positive = 1 - np.searchsorted(sample, 0, "right") / sample.size
    share = search.rank / count if search.share is None else search.share * positive
    search.lo, search.hi, search.expected = _bracket(sample, share, count)


def kth_largest(
    count: int, ranks: Sequence[Sequence[int | float]], values: RowValues | None = None
) -> Generator[Reduction[Any, Any], Any, list[list[float]]]:
    """Return, for each row of values, its `ranks`-th largest ones over the tensor.

    Use as `thresholds = yield from kth_largest(...)` in a method's plan. `values(chunk, row)` returns an
    array or a tensor [n] of the updates' type, which may be a scratch row; without it the magnitudes of the
    updates are searched, row t those of model t. `ranks[row]` holds ranks from 1 (the maximum) to `count`
    (the minimum), where `count` is the tensor's number of elements; or, as a float p in [0, 1], the rank
    ⌊p · number of positive values⌋, which is counted on the way (infinity if it is 0). NaN counts as
    infinitely large.

    Examples:
        >>> import numpy as np
        >>> from submerge.algebra import Chunk, kth_largest
        >>> chunk = Chunk(0, np.array([[4.0, -9.0, 2.0, 1.0]]), width=1, finite=True, keys=[0])
        >>> search = kth_largest(4, [[2]])
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
        collected = yield _Collect(values, rows, sample=False)
        for search in searches:
            _answer_directly(search, collected[search.row])
    elif searches:
        sample = yield _Collect(values, rows, sample=True)
        for column in sample.values():
            column.sort()
        for search in searches:
            _first_bracket(search, sample[search.row], count)
    while pending := [s for s in searches if s.answer is None]:
        censuses = yield _Count(values, pending)
        for search, census in zip(pending, censuses, strict=True):
            _advance(search, census, count)
    answers = iter([s.answer for s in searches if s.answer is not None])  # of all, now
    return [[next(answers) for _ in wanted] for wanted in ranks]
