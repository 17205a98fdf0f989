"""One tensor's job: a generator of passes over the tensor, and what runs it in the calling thread."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from submerge.engine.work._workspace import Workspace

__all__ = ["Pass", "Passes", "Range", "next_pass", "run_passes", "single"]


class Range(NamedTuple):
    """Elements [start, stop) of a flattened tensor; `number` is its place among the tensor's ranges."""

    number: int
    start: int
    stop: int


@dataclass(frozen=True)
class Pass:
    """One pass over a tensor, cut into ranges that any worker may take, in any order.

    Attributes:
        ranges: what is visited; at least one range.
        work: makes a part of a range, with the worker's own buffers. A pass that writes makes none.
        combine: makes the pass's result of the parts, which it gets in the order of the ranges.
    """

    ranges: Sequence[Range]
    work: Callable[[Range, Workspace], Any]
    combine: Callable[[list[Any]], Any] = lambda parts: None


# A job is written as a generator because most jobs need several passes, and what a pass looks for depends on
# what the one before it found: a method yields a reduction, receives its result, and goes on from there. In a
# generator that is one function with local variables from the first pass to the last, whoever runs it: the
# pool of threads, which mixes the ranges of many jobs, or a loop as below. It is only ever advanced by one
# worker at a time, the one that delivered the last part of the pass; so its own code needs no lock, and may
# take its time. What `Pass.work` touches is shared by all workers.
Passes: TypeAlias = Generator[Pass, Any, None]
"""Yields the passes of a job one after another, and receives the combined result of each."""


def next_pass(job: Passes, result: Any) -> Pass | None:
    """Hand the last pass's result to a job (None to one that has not begun); return its next pass, if any."""
    try:
        return job.send(result)
    except StopIteration:
        return None


def run_passes(job: Passes, space: Workspace) -> None:
    """Take a job through all its passes in the calling thread."""
    step = next_pass(job, None)
    while step is not None:
        step = next_pass(job, step.combine([step.work(one, space) for one in step.ranges]))


def single(numel: int, work: Callable[[Workspace], Any]) -> Pass:
    """Return a pass that is not cut: `work` is done by one worker, and what it returns is the result."""
    return Pass([Range(0, 0, numel)], lambda _, space: work(space), lambda parts: parts[0])
