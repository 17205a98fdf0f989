"""Run the command line: `submerge`, or `python -m submerge`."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

__all__ = ["main"]


def main() -> None:
    """Import the commands and run one; Ctrl-C exits with 130, while they are imported, too.

    An interrupt inside an import may be lost, or come out of a library as another error, so that the process
    ends at once: nothing has begun.
    """
    is_heeded = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # in the background it is not
    if is_heeded:
        signal.signal(signal.SIGINT, _leave)
    from submerge.cli import main as run

    try:
        if is_heeded:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        run()
    except KeyboardInterrupt:
        sys.exit(130)


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(130)


if __name__ == "__main__":
    main()
