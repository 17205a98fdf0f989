"""What the demos share: their options, and lines that say what took how long."""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from transformers.utils import logging as transformers_logging

__all__ = ["FEW_STEPS", "options_of", "timed"]

FEW_STEPS = 6
"""Steps of each training with `--fast`."""


def options_of(about: str, out: Path, has_fast: bool = False) -> argparse.Namespace:
    """Return the options of the command line, after torch and transformers were told how to run.

    Where `has_fast`, `--fast` is one of them.
    """
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--out", type=Path, default=out)
    parser.add_argument("--reuse", action="store_true", help="keep the models that an earlier run trained")
    if has_fast:
        parser.add_argument("--fast", action="store_true", help="train hardly at all, to see that it runs")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)  # the same sums everywhere; for so small a model more threads gain nothing
    torch.use_deterministic_algorithms(True)
    return options


@contextmanager
def timed(what: str, console: Console) -> Iterator[None]:
    """Say what is trained, and in the end how long it took."""
    started = time.perf_counter()
    with console.status(f"training {what}"):
        yield
    console.print(f"Trained {what} in {time.perf_counter() - started:.0f} s.")
