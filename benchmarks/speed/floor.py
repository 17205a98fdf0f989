"""The floor: reads files side by side, writes as many bytes as the first has, waits for the disk.

Run as a script (`python floor.py THREADS PASSES OUT FILE...`); prints the seconds inside the process. Needs
the standard library only, so that what it takes is what the machine's page cache and disk take.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator

CHUNK = 1 << 20
"""Bytes of one read."""
RUN = 1 << 24
"""Bytes of a file that are read in one pass before the next pass reads them again, as a tensor's are."""


def copy(files: list[str], out: str, threads: int, passes: int = 1) -> float:
    """Return the seconds that threads take to read `files` `passes` times and to write `out` once."""
    started = time.perf_counter()
    sources = [os.open(path, os.O_RDONLY) for path in files]
    sizes = [os.fstat(source).st_size for source in sources]
    target = os.open(out, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    if sizes[0]:
        os.posix_fallocate(target, 0, sizes[0])
    steps = _steps(max(sizes), passes)
    lock = threading.Lock()

    def work() -> None:
        buffers = [bytearray(CHUNK) for _ in sources]
        while True:
            with lock:
                position, writes = next(steps, (None, False))
            if position is None:
                return
            for source, buffer in zip(sources, buffers, strict=True):
                os.preadv(source, [buffer], position)
            length = min(CHUNK, sizes[0] - position)
            if writes and length > 0:
                os.pwrite(target, memoryview(buffers[0])[:length], position)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    os.fsync(target)  # as a merge does, so that what has its name is on the disk
    for descriptor in (*sources, target):
        os.close(descriptor)
    return time.perf_counter() - started


def _steps(size: int, passes: int) -> Iterator[tuple[int, bool]]:
    """Yield where a chunk is read, and whether it is written too: in the last pass over its run."""
    for run in range(0, size, RUN):
        for number in range(1, passes + 1):
            for position in range(run, min(run + RUN, size), CHUNK):
                yield position, number == passes


if __name__ == "__main__":
    os.makedirs(os.path.dirname(sys.argv[3]), exist_ok=True)
    print(copy(sys.argv[4:], sys.argv[3], int(sys.argv[1]), int(sys.argv[2])))
