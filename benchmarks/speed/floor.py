"""The floor: reads files side by side, writes as many bytes as the first has, waits for the disk.

Run as a script (`python floor.py THREADS OUT FILE...`); prints the seconds inside the process. Needs
the standard library only, so that what it takes is what the machine's page cache and disk take.
"""

from __future__ import annotations

import os
import sys
import threading
import time

CHUNK = 1 << 20


def copy(files: list[str], out: str, threads: int) -> float:
    """Return the seconds that `threads` threads take to read `files` and write `out`."""
    started = time.perf_counter()
    sources = [os.open(path, os.O_RDONLY) for path in files]
    sizes = [os.fstat(source).st_size for source in sources]
    target = os.open(out, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    if sizes[0]:
        os.posix_fallocate(target, 0, sizes[0])
    positions = iter(range(0, max(sizes), CHUNK))
    lock = threading.Lock()

    def work() -> None:
        buffers = [bytearray(CHUNK) for _ in sources]
        while True:
            with lock:
                position = next(positions, None)
            if position is None:
                return
            for source, buffer in zip(sources, buffers, strict=True):
                os.preadv(source, [buffer], position)
            length = min(CHUNK, sizes[0] - position)
            if length > 0:
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


if __name__ == "__main__":
    os.makedirs(os.path.dirname(sys.argv[2]), exist_ok=True)
    print(copy(sys.argv[3:], sys.argv[2], int(sys.argv[1])))
