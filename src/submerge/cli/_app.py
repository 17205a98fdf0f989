"""The commands' frame: options that they share, and what becomes of errors and signals."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import warnings
from types import FrameType

import typer

from submerge._version import __version__
from submerge.cli import (
    _calibrate,
    _explain,
    _export,
    _extract,
    _inspect,
    _many,
    _merge,
    _methods,
    _moe,
    _plan,
    _route,
    _transplant,
    _verify,
)
from submerge.cli._mergekit import MergekitAware
from submerge.environment import check_environment, shows_tracebacks
from submerge.errors import SubmergeError

__all__ = ["app", "main"]

app = typer.Typer(
    name="submerge",
    help="Merge fine-tuned models of one base, without training.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("merge", cls=MergekitAware)(_merge.merge)
app.command("calibrate")(_calibrate.calibrate)
app.command("plan", cls=MergekitAware)(_plan.plan)
app.command("explain")(_explain.explain)
app.command("inspect")(_inspect.inspect)
app.command("export")(_export.export)
app.command("extract-lora")(_extract.extract_lora)
app.add_typer(_many.many, name="many")
app.command("moe", cls=_moe.MergekitMoeAware)(_moe.moe)
app.command("methods")(_methods.methods)
app.command("route")(_route.route)
app.command("transplant")(_transplant.transplant)
app.command("verify")(_verify.verify)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"submerge {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """Merge fine-tuned models of one base, without training."""


_received: list[int] = []
"""The signals that are to end the command: a library may have made another error of what they raised."""


def main() -> None:
    """Run the command line; exit 0 when all is fine, 1 when the work failed, 2 for a wrong request.

    Ctrl-C exits with 130 and SIGTERM with 143. Any other error is a bug: it is reported in one
    line, and in full where SUBMERGE_DEBUG is set.
    """
    _received.clear()
    signal.signal(signal.SIGTERM, _stopped)
    is_heeded = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # in the background it is not
    if is_heeded:
        signal.signal(signal.SIGINT, _stopped)
    warnings.showwarning = _show_warning
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks θ or — still shows the rest
    try:
        check_environment()
        app(prog_name="submerge")
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        sys.exit(128 + _received[0] if _received else _report(error))
    finally:
        if is_heeded:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _report(error: Exception) -> int:
    """Print an error; return what to exit with."""
    if isinstance(error, SubmergeError):
        for line in str(error).splitlines():
            print(f"error: {line}" if not line.startswith("  ") else line, file=sys.stderr)
        return error.exit_code
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    elif isinstance(error, MemoryError):
        print("error: the machine's memory is used up — allow less with --max-memory", file=sys.stderr)
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        what = f"the output of the command cannot be written ({error.strerror})"
        print(f"error: {what} — free some space, or print elsewhere", file=sys.stderr)
    elif shows_tracebacks():
        raise error
    else:
        print(
            f"error: {type(error).__name__}: {error} — this is a bug in submerge; set SUBMERGE_DEBUG=1 "
            "to see where, and please report it",
            file=sys.stderr,
        )
    return 1


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Print a warning of Python's as commands print theirs."""
    print(f"warning: {message}", file=sys.stderr)


def _stopped(number: int, frame: FrameType | None) -> None:
    _received.append(number)
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
