"""Values that are computed at their first use."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Generic, TypeVar

__all__ = ["Once"]

T = TypeVar("T")


class Once(Generic[T]):
    """A value that the first thread which needs it computes, while others wait, and that stays in memory."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._held: tuple[T] | None = None

    def of(self, compute: Callable[[], T]) -> T:
        """Return the value, computed if this is the first use."""
        with self._lock:
            if self._held is None:
                self._held = (compute(),)
            return self._held[0]
