"""How far a merge is, on standard error: a bar in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
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

    def show(state: Progress) -> None:
        nonlocal next_time
        if state.seconds >= next_time or state.written == state.total:
            next_time = state.seconds + REDRAW
            bar.update(task, completed=state.written, total=state.total, moved=_moved(state))
            bar.refresh()

    with bar:
        task = bar.add_task("merging", total=None, moved="")
        bar.refresh()
        yield show


class _Lines:
    """Lines for a log."""

    def __init__(self) -> None:
        self.next_time = FIRST
        self.taken_over: int | None = None

    def show(self, state: Progress) -> None:
        if self.taken_over is None:  # what an interrupted run has written took none of this one's time
            self.taken_over = state.written
        if state.seconds < self.next_time:
            return
        self.next_time = state.seconds + EVERY
        line = f"merging: {state.written / max(1, state.total):.0%}, {_moved(state)}"
        done = state.written - self.taken_over
        if done * 20 > state.total:  # before, there is little to go by
            line += f", about {_time(state.seconds * (state.total - state.written) / done)} left"
        print(line, file=sys.stderr, flush=True)


def _moved(state: Progress) -> str:
    """Return the bytes read and written so far, and in a second."""
    return f"{size(state.moved)} at {size(state.moved / max(1e-9, state.seconds))}/s"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
