"""How far work is, on standard error: a bar in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from submerge.errors import size

if TYPE_CHECKING:
    from submerge.calibrate import Step
    from submerge.engine import InspectionProgress, Progress

    State: TypeAlias = Progress | InspectionProgress | Step | "BatchProgress"

__all__ = ["BatchProgress", "progress"]

REDRAW = 0.1
"""Seconds between two pictures of the bar."""
FIRST, EVERY = 10.0, 30.0
"""Seconds until the first line in a log, and between two lines."""


class BatchProgress(NamedTuple):
    """How many batches of a task's inputs were run, of all."""

    done: int
    total: int


@contextmanager
def progress(quiet: bool) -> Iterator[Callable[[State], None]]:
    """Give what the engine is to call about ten times a second, and calibration after each step."""
    begun = time.perf_counter()
    if quiet:
        yield lambda _: None
    elif sys.stderr.isatty():
        with _bar() as draw:
            yield lambda state: draw(_Shown.of(state, begun))
    else:
        lines = _Lines()
        yield lambda state: lines.show(_Shown.of(state, begun))


class _Shown(NamedTuple):
    """What is shown of a state: what is done, how much of how much, a remark, and the seconds so far."""

    what: str
    done: int
    total: int
    remark: str
    seconds: float

    @classmethod
    def of(cls, state: State, begun: float) -> _Shown:
        """Return what is shown of a merge, an inspection, or a calibration that has `begun` then."""
        from submerge.engine import InspectionProgress, Progress

        if isinstance(state, Progress):
            return cls("merging", state.written, state.total, _moved(state), state.seconds)
        if isinstance(state, InspectionProgress):
            matrices = f"{state.done} of {state.total} matrices"
            return cls("inspecting", state.done, state.total, matrices, state.seconds)
        seconds = time.perf_counter() - begun
        if isinstance(state, BatchProgress):
            return cls("measuring", state.done, state.total, "inputs of linear maps", seconds)
        if state.measuring:
            return cls("measuring", state.number, state.total, state.what, seconds)
        return cls("calibrating", state.number, state.total, f"loss {state.loss:.5f}", seconds)


@contextmanager
def _bar() -> Iterator[Callable[[_Shown], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    bar = Bar(
        TextColumn("{task.description}"),
        BarColumn(24),
        TextColumn("{task.percentage:3.0f}%  {task.fields[remark]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        auto_refresh=False,  # its thread would keep the merge from forking
    )
    last, next_time = "", 0.0

    def show(state: _Shown) -> None:
        nonlocal last, next_time
        if state.what != last or state.seconds >= next_time or state.done == state.total:
            if state.what != last:
                bar.reset(task)
            last, next_time = state.what, state.seconds + REDRAW
            bar.update(task, description=last, completed=state.done, total=state.total, remark=state.remark)
            bar.refresh()

    with bar:
        task = bar.add_task("starting", total=None, remark="")
        bar.refresh()
        yield show


class _Lines:
    """Lines for a log."""

    def __init__(self) -> None:
        self.what = ""
        self.next_time = FIRST
        self.taken_over = 0

    def show(self, state: _Shown) -> None:
        if self.what != state.what:  # what an interrupted run has written took none of this one's time
            self.what, self.taken_over, self.next_time = state.what, state.done, FIRST
        if state.seconds < self.next_time:
            return
        self.next_time = state.seconds + EVERY
        line = f"{state.what}: {state.done / max(1, state.total):.0%}, {state.remark}"
        done = state.done - self.taken_over
        if done * 20 > state.total:  # before, there is little to go by
            line += f", about {_time(state.seconds * (state.total - state.done) / done)} left"
        print(line, file=sys.stderr, flush=True)


def _moved(state: Progress) -> str:
    """Return the bytes read and written so far, and in a second."""
    return f"{size(state.moved)} at {size(state.moved / max(1e-9, state.seconds))}/s"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
