"""How a merge is run: nothing here changes a value of the result."""

from __future__ import annotations

import os
from dataclasses import dataclass

from submerge.errors import RequestError

__all__ = ["Settings"]

GB = 10**9


@dataclass(frozen=True)
class Settings:
    """How a merge is run; nothing here changes a value of the result.

    `max_memory` bounds the process' resident memory in bytes, `shard_size` a file's data in bytes.
    `threads` None means one a core that this process may use.
    """

    device: str = "cpu"
    threads: int | None = None
    max_memory: int = GB
    shard_size: int = 5 * GB
    allow_pickle: bool = False
    allow_nonfinite: bool = False

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise RequestError(f"--threads must be at least 1; found {self.threads}")
        if self.shard_size < 1:
            raise RequestError(f"--shard-size must be positive; found {self.shard_size}")

    @property
    def workers(self) -> int:
        """The threads asked for."""
        if self.threads:
            return self.threads
        if hasattr(os, "sched_getaffinity"):
            return len(os.sched_getaffinity(0))
        return os.cpu_count() or 1
