"""What the process takes of the machine."""

from __future__ import annotations

import contextlib
import sys

__all__ = ["peak_resident"]


def peak_resident() -> int:
    """Return the most resident memory that the process has held, in bytes."""
    with contextlib.suppress(OSError, StopIteration, ValueError), open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import resource  # counts what the process held before it became this program, too

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
