"""Jobs that need no tensor: passes over a few ranges, each of which gets the result of the one before."""

from __future__ import annotations

import torch

from submerge.engine.work import Pass, Passes, Range

__all__ = ["CPU", "RANGES", "job"]

CPU = torch.device("cpu")
RANGES = [Range(number, 10 * number, 10 * number + 10) for number in range(7)]


def job(results: list[str], passes: int = 3) -> Passes:
    """Yield passes that join the ranges' numbers behind the last result, and note the last one."""
    text = ""
    for _ in range(passes):
        text = text + (yield Pass(RANGES, lambda one, _: str(one.number), "".join))
    results.append(text)
