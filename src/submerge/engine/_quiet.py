"""Silence of another library, for as long as it works for us."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["quietly"]


@contextmanager
def quietly(logging: Any) -> Iterator[None]:
    """Keep `transformers.logging` to errors inside, without progress bars, and leave it as it was."""
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
