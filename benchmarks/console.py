"""What the benchmarks print while they work, and lists that their options take."""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Callable, Collection

from rich.console import Console
from rich.markup import escape

__all__ = ["Say", "listed", "say", "silent"]

Say = Callable[[str], None]
"""A function that gets lines about how far a benchmark is."""


def say(line: str) -> None:
    """Print a line with the time."""
    time = f"{datetime.datetime.now():%H:%M:%S}"
    Console(stderr=True).print(f"[dim]{time}[/] {escape(line)}", highlight=False)


def silent(_: str) -> None:
    """Print nothing."""


def listed(known: Collection[str]) -> Callable[[str], list[str]]:
    """Return the type of an option that takes some of the known names, separated by commas."""

    def read(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
        return names

    return read
