"""Commands that are killed at a chosen call of the file system, or say what they import, as processes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _cli import cli
from _victim import CONTEXT, result_of

__all__ = ["file_calls", "imported", "killed_at"]

CALLS = ("open", "mkdir", "pwrite", "ftruncate", "fsync", "replace", "rename", "unlink")
"""The functions of `os` that change files, or make sure of it."""


def killed_at(call: int, argv: Sequence[object], log: Path) -> None:
    """Run `submerge ARGV`, and kill it before the call of this number, from 0."""
    assert _exit_of(call, argv, log) == -signal.SIGKILL, log.read_text()


def file_calls(argv: Sequence[object], log: Path) -> int:
    """Run `submerge ARGV` to its end, and return how many calls it makes."""
    assert _exit_of(-1, argv, log) == 0, log.read_text()
    return int(log.with_suffix(".calls").read_text())


def imported(argv: Sequence[object], packages: set[str]) -> set[str]:
    """Run `submerge ARGV` to its end, and return which of these packages it has imported."""
    found: set[str] = result_of(_imported, [str(a) for a in argv], packages, environment={})
    return found


def _imported(argv: Sequence[str], packages: set[str]) -> set[str]:
    assert cli(*argv).code == 0
    return packages & sys.modules.keys()


def _exit_of(call: int, argv: Sequence[object], log: Path) -> int | None:
    process = CONTEXT.Process(target=_run, args=(call, [str(a) for a in argv], log))
    process.start()
    process.join(60)
    return process.exitcode


def _run(call: int, argv: list[str], log: Path) -> None:
    from submerge.cli import main

    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    os.dup2(2, 1)
    count = 0

    def counted(function: Any) -> Any:
        def counting(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            if count == call:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1
            return function(*arguments, **options)

        return counting

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))
    sys.argv = ["submerge", *argv]
    try:
        main()
    finally:
        log.with_suffix(".calls").write_text(str(count))
