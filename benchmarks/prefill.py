"""What the benchmarks of prefills share: ways that are timed in turns, and a report, printed and kept."""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks import page

__all__ = ["Seconds", "Ways", "run", "timed"]

Ways = Mapping[str, Callable[[], Any]]
"""What is timed, by name."""
Seconds = Mapping[str, list[float]]
"""The seconds of each turn, by name."""


def run(
    about: str,
    defaults: Mapping[str, int],
    ways: Callable[[Path, argparse.Namespace], Ways],
    table: Callable[[Seconds, argparse.Namespace], str],
    file: str,
) -> int:
    """Time the ways that are made in a new folder, print their table, and write it to a file of results.

    `defaults` are the options of the command line, all whole numbers; `repeats` and `threads` are among them.
    """
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    for option, default in defaults.items():
        parser.add_argument(f"--{option}", type=int, default=default)
    parser.add_argument("--out", type=Path, default=page.RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seconds = timed(ways(Path(place), options), options.repeats)
    report = table(seconds, options)
    print(report)
    (options.out / file).write_text(report + "\n", encoding="utf-8")
    return 0


def timed(ways: Ways, repeats: int) -> dict[str, list[float]]:
    """Return the seconds of each way, taken in turns after one of each that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with torch.no_grad():
        for turn in range(repeats + 1):
            for name, way in ways.items():
                begun = time.perf_counter()
                way()
                if turn:
                    seconds[name].append(time.perf_counter() - begun)
    return seconds
