"""Looks many times a second at what a merge's threads do, and counts the stacks that it sees.

Run as a script (`python -m benchmarks.speed.sampler RECIPE OUT COUNTS`) it merges with one worker, which is
in the process itself, and writes what it counted as JSON. A stack is seen whenever its thread does not hold
Python's lock, or has just given it back: arithmetic and file operations on whole chunks run without it.
"""

from __future__ import annotations

import json
import linecache
import os
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType

__all__ = ["INTERVAL_S", "Sampler"]

INTERVAL_S = 0.002
"""Between two looks."""
SWITCH_S = 0.0005
"""After so long a thread gives Python's lock to the one that looks."""
WAITS = {
    ("threading.py", "wait"),
    ("threading.py", "_wait_for_tstate_lock"),
    ("threading.py", "join"),
    ("queue.py", "get"),
    ("selectors.py", "select"),
    ("thread.py", "_worker"),
}
"""File and function of frames in which a thread has nothing to do."""
OUTSIDE = {"sampler.py", "threading.py", "<frozen runpy>"}
"""Files of frames that call the work, and are the same in every stack."""
KERNEL = "Kernel.__call__"
"""The function that calls a compiled loop."""
IMPORTS = "<frozen importlib"
"""How the files of the import system are called."""


class Sampler:
    """Counts the stacks of all other threads, while it is entered."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, ...]] = Counter()
        self.looks = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Sampler:
        sys.setswitchinterval(SWITCH_S)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        own = threading.get_ident()
        while not self._ended.wait(INTERVAL_S):
            self.looks += 1
            for thread, frame in sys._current_frames().items():
                if thread != own and not _waits(frame):
                    self.counts[_stack(frame)] += 1


def _waits(frame: FrameType) -> bool:
    return (os.path.basename(frame.f_code.co_filename), frame.f_code.co_name) in WAITS


def _stack(frame: FrameType) -> tuple[str, ...]:
    """Return the functions from the outermost to the innermost, and at the end the line that runs.

    All that an import does is one entry: it is no part of the work. A kernel is one, too.
    """
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno or 0).strip()
    names = [] if frame.f_code.co_qualname == KERNEL else [line]
    at: FrameType | None = frame
    while at is not None:
        if at.f_code.co_filename.startswith(IMPORTS):
            names = ["imports"]
        elif os.path.basename(at.f_code.co_filename) not in OUTSIDE:
            names.append(_name(at))
        at = at.f_back
    return tuple(reversed(names))


def _name(frame: FrameType) -> str:
    """Return a function's name with its file; a kernel's own name, for one function calls all of them."""
    code = frame.f_code
    if code.co_qualname == KERNEL:
        return f"kernel {getattr(frame.f_locals['self'], '__name__', '')}"
    return f"{code.co_qualname.replace('.<locals>', '')} ({_file(code)})"


def _file(code: CodeType) -> str:
    path = code.co_filename
    for root in ("submerge", "site-packages", "lib"):
        if f"/{root}/" in path:
            return path.rsplit(f"/{root}/", 1)[1]
    return os.path.basename(path)


def main(recipe: str, out: str, counts: str) -> None:
    """Merge with one worker while it is sampled; write stacks, their counts, looks and seconds."""
    import submerge

    begun, cpu = time.perf_counter(), time.process_time()
    with Sampler() as sampler:
        submerge.merge(recipe, out, settings=submerge.Settings(threads=1))
    seen = {
        "stacks": [[list(stack), count] for stack, count in sampler.counts.items()],
        "looks": sampler.looks,
        "seconds": time.perf_counter() - begun,
        "cpu_seconds": time.process_time() - cpu,
    }
    Path(counts).write_text(json.dumps(seen))


if __name__ == "__main__":
    main(*sys.argv[1:])
