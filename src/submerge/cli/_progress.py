"""How far a merge is, on standard error: a bar in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from submerge.cli._common import size

if TYPE_CHECKING:
    from submerge.engine import Progress

__all__ = ["progress"]

REDRAW = 0.1
"""Seconds between two pictures of the bar."""
FIRST, EVERY = 10.0, 30.0
"""Seconds until the first line in a log, and between two lines."""


@contextmanager
def progress(quiet: bool) -> Iterator[Callable[[Progress], None]]:
    """Give what the engine is to call about ten times a second."""
    if quiet:
        yield lambda _: None
    elif sys.stderr.isatty():
        with _bar() as show:
            yield show
    else:
        yield _Lines().show


@contextmanager
def _bar() -> Iterator[Callable[[Progress], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    bar = Bar(
        TextColumn("merging"),
        BarColumn(24),
        TextColumn("{task.percentage:3.0f}%  {task.fields[moved]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        auto_refresh=False,  # its thread would keep the merge from forking
    )
    next_time = 0.0

    def show(found: Progress) -> None:
        nonlocal next_time
        pace.note(found)
        if pace.now >= next_time or found.written == found.total:
            next_time = pace.now + REDRAW
            bar.update(task, completed=found.written, total=found.total, moved=pace.moved())
            bar.refresh()

    with bar:
        task = bar.add_task("merging", total=None, moved="")
        bar.refresh()
        pace = _Pace()
        yield show


class _Lines:
    """Lines for a log."""

    def __init__(self) -> None:
        self.pace = _Pace()
        self.next_time = self.pace.now + FIRST

    def show(self, found: Progress) -> None:
        self.pace.note(found)
        if self.pace.now >= self.next_time:
            self.next_time = self.pace.now + EVERY
            share = f"{found.written / max(1, found.total):.0%}"
            print(f"merging: {share}, {self.pace.moved()}{self.pace.left()}", file=sys.stderr, flush=True)


class _Pace:
    """How fast a run is."""

    def __init__(self) -> None:
        import torch  # noqa: F401 # its own start is no part of the run's time

        self.begun = self.now = time.monotonic()
        self.taken_over: int | None = None

    def note(self, found: Progress) -> None:
        self.now, self.last = time.monotonic(), found
        if self.taken_over is None:  # what an interrupted run has written took none of this one's time
            self.taken_over = found.written

    def moved(self) -> str:
        """Return the bytes read and written so far, and in a second."""
        return f"{size(self.last.moved)} at {size(self.last.moved / max(1e-9, self.now - self.begun))}/s"

    def left(self) -> str:
        """Return the time that is left, once a twentieth is done and there is something to go by."""
        done = self.last.written - (self.taken_over or 0)
        if done * 20 < self.last.total or not done:
            return ""
        seconds = (self.now - self.begun) * (self.last.total - self.last.written) / done
        return f", about {_time(seconds)} left"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
