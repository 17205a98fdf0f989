"""Runs of the command line in processes of their own, cheap to start: for signals, locks and limits.

A fork server that has imported torch, the engine and the methods once gives each run a fresh process in
milliseconds.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from submerge import methods
from submerge.engine.work import RangeRecord

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        *("torch", "yaml", "submerge.continual", "submerge.cli._app", "submerge.cli._many"),
        *(f"submerge.methods.{module.name}" for module in iter_modules(methods.__path__)),
        "typer._adapters",  # pydantic, which typer imports when it has read the first command line
    ]
)


@dataclass
class Victim:
    """A running `submerge …`, and the files that its streams go to."""

    process: BaseProcess
    stdout: Path
    stderr: Path
    gate: Path

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def wait(self, seconds: float = 60) -> int:
        """Return the exit code, negative for a signal."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, "it hangs"
        return self.process.exitcode

    def release(self) -> None:
        """Let a run that is held go on."""
        self.gate.touch()

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            self.process.kill()
        self.process.join()


def start(
    argv: Sequence[object],
    logs: Path,
    *,
    small: bool = False,
    hold: int | None = None,
    limits: Mapping[str, int] | None = None,
    plain: bool = False,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    context: Any = CONTEXT,
) -> Victim:
    """Run `submerge ARGV` in a new process, in a folder and with environment variables if they are given.

    `small` shrinks chunks and tasks to 8192 elements, `limits` are those of `resource` by name, and `plain`
    takes away root's right to any file. `hold` stops the workers as soon as so many ranges are written, until
    they are released or the run is told to end: however slow the machine is, it cannot be too late for them.
    `context` is that of `multiprocessing` which makes the process.
    """
    logs.mkdir(exist_ok=True)
    number = len(list(logs.glob("*.out")))
    out, err, gate = (logs / f"{number}.{kind}" for kind in ("out", "err", "gate"))
    out.touch()
    place = (folder, dict(environment or {}))
    arguments = ([str(a) for a in argv], out, err, gate, small, hold, dict(limits or {}), plain, *place)
    process = context.Process(target=_run, args=arguments)
    process.start()
    return Victim(process, out, err, gate)


def result_of(function: Callable[..., Any], *arguments: Any, environment: Mapping[str, str]) -> Any:
    """Return what a function of a module returns in a new process with these environment variables."""
    ours, theirs = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_send, args=(theirs, function, arguments, dict(environment)))
    process.start()
    theirs.close()  # so that a process that fails ends the wait
    with ours:
        result = ours.recv()
    process.join()
    return result


def _send(connection: Any, function: Callable[..., Any], arguments: Any, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    connection.send(function(*arguments))


def until(condition: object, seconds: float = 60) -> None:
    """Wait until a function returns something true."""
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.002)


def _run(
    argv: list[str],
    out: Path,
    err: Path,
    gate: Path,
    small: bool,
    hold: int | None,
    limits: dict[str, int],
    plain: bool,
    folder: Path | None,
    environment: dict[str, str],
) -> None:
    os.environ.update(environment)
    if folder is not None:
        os.chdir(folder)
    for path, stream in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    from submerge.cli import main
    from submerge.engine.plan.tensors import _tensor

    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    if small:
        _tensor.CHUNK_VALUES = _tensor.RANGE_ELEMENTS = 1
    if hold is not None:
        _hold(hold, gate)
    for name, limit in limits.items():
        resource.setrlimit(getattr(resource, name), (limit, limit))
    if plain:
        _drop_capabilities()
    sys.argv = ["submerge", *argv]
    main()


def _hold(count: int, gate: Path) -> None:
    """Let workers wait before the gate when `count` ranges are written."""
    from submerge.engine.output import _run
    from submerge.engine.work import _threads

    pools: list[_threads._Pool] = []
    written: list[RangeRecord] = []
    begin, finished = _threads._Pool.__init__, _run.Run._finished

    def noted(self: _threads._Pool, *arguments: Any) -> None:
        begin(self, *arguments)
        pools.append(self)

    def held(self: _run.Run, record: RangeRecord) -> None:
        finished(self, record)
        written.append(record)
        while len(written) >= count and not pools[-1].stopped and not gate.exists():
            time.sleep(0.002)

    _threads._Pool.__init__ = noted  # type: ignore[method-assign]
    _run.Run._finished = held  # type: ignore[method-assign]


def _drop_capabilities() -> None:
    """Give up what root may do beyond its own files' permissions (capset, Linux)."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).capset(header, sets) == 0
