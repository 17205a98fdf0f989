"""What the environment asks of Submerge, by variables whose names begin with `SUBMERGE_`."""

from __future__ import annotations

import os
import warnings
from functools import cache

from submerge.errors import did_you_mean, nearest

__all__ = ["check_environment", "kernels_choice", "shows_tracebacks"]

PREFIX = "SUBMERGE_"
KERNELS = "KERNELS"
DEBUG = "DEBUG"
OTHERS = ("DATA", "CACHE")
"""Names that the benchmarks of the repository read."""
CHOICES = ("numpy", "numba")
OFF = ("", "0", "false", "no", "off")


def kernels_choice() -> str:
    """Return what computes: `numpy`, which compiles nothing; `numba`, whatever the size; or nothing."""
    choice = _value(KERNELS)
    return choice if choice in CHOICES else ""


def shows_tracebacks() -> bool:
    """Return whether the command line shows where an unexpected error came from."""
    return _value(DEBUG) not in OFF


@cache
def check_environment() -> None:
    """Warn, once in a process, of a variable that is not known or has a value that is not known."""
    choice = _value(KERNELS)
    if choice not in ("", *CHOICES):
        hint = did_you_mean(choice, CHOICES)
        _warn(f"{PREFIX}{KERNELS} is {os.environ[PREFIX + KERNELS]!r}, which is ignored — {hint}")
    known = (KERNELS, DEBUG, *OTHERS)
    for name in sorted(os.environ):
        own = name.removeprefix(PREFIX)
        if own not in (name, *known) and nearest(own, (KERNELS, DEBUG)) is not None:
            hint = did_you_mean(name, (PREFIX + KERNELS, PREFIX + DEBUG))
            _warn(f"{name} is ignored — {hint}")


def _value(name: str) -> str:
    return os.environ.get(f"{PREFIX}{name}", "").strip().lower()


def _warn(what: str) -> None:
    warnings.warn(f"environment: {what}", RuntimeWarning, stacklevel=3)
