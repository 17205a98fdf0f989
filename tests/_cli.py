"""The command line, run in this process: what it printed where, and its exit code."""

from __future__ import annotations

import io
import json
import signal
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from submerge.cli import main

ROOM = ("--max-memory", "64GB")
"""The process that runs the tests already holds more than the default allows."""


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def cli(*argv: object, terminal: bool = False) -> Result:
    """Run `submerge ARGV`, as if in a terminal if asked for."""
    out, err = (Terminal(), Terminal()) if terminal else (io.StringIO(), io.StringIO())
    code: Any = 0
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with (
            redirect_stdout(out),
            redirect_stderr(err),
            mock.patch.object(sys, "argv", ["submerge", *map(str, argv)]),
        ):
            main()
    except SystemExit as stop:
        code = stop.code
    finally:
        signal.signal(signal.SIGTERM, handler)
    return Result(code or 0, out.getvalue(), err.getvalue())


def standard_input(content: str | bytes, encoding: str = "utf-8") -> io.TextIOWrapper:
    """Return what stands for `sys.stdin` and has this content; `encoding` is the locale's."""
    return io.TextIOWrapper(io.BytesIO(content.encode() if isinstance(content, str) else content), encoding)


def merge(recipe: Path, out: Path, *more: object) -> Result:
    """Run `submerge merge` with room for the tests' own memory."""
    return cli("merge", recipe, "-o", out, *ROOM, *more)


def refused(result: Result, out: Path, code: int, *parts: str) -> None:
    """Assert that a merge failed as it should: told on stderr, with a way out, and nothing left behind."""
    told = f"exit {result.code}\n{result.err}"
    assert result.code == code, told
    assert result.out == ""
    assert result.err.startswith("error: "), told
    for part in parts:
        assert part in result.err, f"{part!r} is not in {told}"
    assert "Traceback" not in result.err
    assert "bug in submerge" not in result.err, told
    assert " — " in result.err, f"no hint in {told}"
    assert not out.exists()
    if code == 2:
        assert not out.with_name(out.name + ".incomplete").exists()
