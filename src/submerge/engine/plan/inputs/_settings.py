"""How a merge is run: nothing here changes a value of the result."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from pathlib import Path

from submerge.errors import RequestError

__all__ = ["Settings"]

GB = 10**9
LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Where Linux tells a container how much memory it may take, in the two versions of control groups."""


def _memory() -> int:
    """Return a quarter of the memory that the machine, or the container, has; 2 GB where that is less."""
    limits = []
    with contextlib.suppress(ValueError, OSError):  # not known here
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for limit in LIMITS:
        with contextlib.suppress(ValueError, OSError):  # "max", or no such file
            limits.append(int(limit.read_text()))
    return max(2 * GB, min(limits, default=0) // 4)


@dataclass(frozen=True)
class Settings:
    """How a merge is run; nothing here changes a value of the result.

    Attributes:
        device: where to compute: `cpu`, `cuda` or `cuda:N`.
        threads: workers; None means one a core that this process may use.
        max_memory: bound on the process' resident memory, in bytes: a quarter of the machine's, at least
            2 GB, if it is not given.
        shard_size: bound on the data of one file of weights, in bytes.
        allow_pickle: read files of pickles, which can run code.
        allow_nonfinite: write a result that holds NaN or Inf.

    Raises:
        RequestError: a number is out of its range.

    Examples:
        >>> import submerge
        >>> settings = submerge.Settings(threads=2, max_memory=800_000_000)
        >>> settings.workers
        2
    """

    device: str = "cpu"
    threads: int | None = None
    max_memory: int = field(default_factory=_memory)
    shard_size: int = 5 * GB
    allow_pickle: bool = False
    allow_nonfinite: bool = False

    def __post_init__(self) -> None:
        for name in ("max_memory", "shard_size"):
            if not isinstance(getattr(self, name), (int, float)):
                raise RequestError(f"{name} is a number of bytes; found {getattr(self, name)!r}")
        if not isinstance(self.threads, (int, type(None))):
            raise RequestError(f"threads is a whole number; found {self.threads!r}")
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
