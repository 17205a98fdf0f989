"""What several commands print or parse alike."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from submerge.arguments import finite_or_none
from submerge.errors import Problem, RequestError, size

if TYPE_CHECKING:
    from submerge.engine import Settings
    from submerge.recipe import Documents, MixtureRecipe, Recipe

__all__ = [
    "check_new_files",
    "check_picture",
    "document_title",
    "load",
    "load_documents",
    "load_mixture",
    "print_json",
    "print_warnings",
    "resumable",
    "settings",
    "source_of",
    "target_of",
]

T = TypeVar("T")

_UNITS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}
_SIZE = re.compile(r"\s*(\d{1,18}(?:\.\d+)?)\s*([kmgt]i?)?(b?)\s*", re.IGNORECASE)
_LEAST = 10**6
"""Bytes below which a size must be a mistake: no file and no process of a merge is that small."""


def settings(
    *,
    threads: int | None,
    max_memory: str | None,
    device: str = "cpu",
    shard_size: str = "5GB",
    **flags: Any,
) -> Settings:
    """Return the engine's settings from the command line's texts."""
    if max_memory is not None:
        flags["max_memory"] = _parse_size(max_memory, "--max-memory")
    flags["shard_size"] = _parse_size(shard_size, "--shard-size")
    from submerge import engine

    return engine.Settings(device=device, threads=threads, **flags)


def load(path: Path, document: str | None = None) -> Recipe:
    """Return the recipe, from standard input where it is called -; of several documents the one named."""
    from submerge import recipe

    return recipe.load_documents(source_of(path)).one(document)


def load_documents(
    path: Path | str,
    form: str | None = None,
    rank: int | None = None,
    energy: float | None = None,
    *,
    mergekit: bool = False,
) -> Documents:
    """Return the recipes of a file, or of a text, with the flags over the result's own output.

    Where all that is wrong is what mergekit ignores, the error says so.
    """
    from submerge import recipe

    given = {"as": form, "rank": rank, "energy": energy}
    output = {key: value for key, value in given.items() if value is not None}
    source = source_of(path) if isinstance(path, Path) else path
    return _hinted(lambda lenient: recipe.load_documents(source, output=output, mergekit=lenient), mergekit)


def load_mixture(path: Path | str, *, mergekit: bool = False) -> MixtureRecipe:
    """Return the recipe for a mixture of experts of a file, or of a text."""
    from submerge import recipe

    source = source_of(path) if isinstance(path, Path) else path
    return _hinted(lambda lenient: recipe.load_mixture(source, mergekit=lenient), mergekit)


def _hinted(load: Callable[[bool], T], mergekit: bool) -> T:
    """Return what is loaded; where all that is wrong is what mergekit ignores, the error says so."""
    try:
        return load(mergekit)
    except RequestError as error:
        problems = error.problems
    try:
        load(True)
    except RequestError:
        raise RequestError(problems) from None
    hint = "with --mergekit they are ignored, and named in warnings"
    raise RequestError([*problems, Problem("mergekit ignores these", "", hint)])


def source_of(path: Path) -> str | Path:
    """Return the path of a recipe, or the text on standard input where it is called -."""
    if str(path) != "-":
        return path
    from submerge.recipe import read_text

    return f"{read_text(sys.stdin.buffer, 'standard input')}\n"


def _parse_size(text: str, flag: str) -> int:
    """Return the bytes that a text such as 2GB, 500MB, 1.5GiB or 4000000 means; at least 1 MB."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise RequestError(Problem(f"{text!r} is not a size", flag, "write one like 2GB, 500MB or 1.5GiB"))
    number, unit, byte = match.groups()
    count = int(float(number) * _UNITS[(unit or "").lower()])
    if count >= _LEAST:
        return count
    hint = "write a size in bytes, such as 10GB or 500MB"
    if byte and not unit and flag == "--shard-size":
        gigabytes = f"{2 * float(number):g}GB"
        hint += f"; mergekit's {number}B are {number} billion parameters, which take {gigabytes} in 16 bits"
    raise RequestError(Problem(f"{text!r} is {size(count)}, less than 1 MB", flag, hint))


def print_json(data: Any) -> None:
    """Write data as JSON to standard output; infinities and NaN, for which JSON has no number, as null."""
    typer.echo(json.dumps(finite_or_none(data), indent=1, ensure_ascii=False, default=str))


def print_warnings(warnings: Iterable[str]) -> None:
    """Print warnings on standard error, each on a line of its own."""
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)


def document_title(document: str) -> str:
    """Return what a document of a recipe is called, whose name is empty where it makes the result."""
    return f"document {document or 'of the result'}"


def check_picture(picture: Path | None, given: Path, *, overwrite: bool) -> None:
    """Refuse a picture that cannot be drawn, or written, before work that may take long."""
    if picture is not None:
        from submerge import report

        report.check_picture(picture)
        check_new_files([picture], given, overwrite=overwrite)


def check_new_files(paths: Sequence[Path], given: Path, *, overwrite: bool) -> None:
    """Refuse files that cannot be written, as over what was `given`, before work that may take long."""
    problems = [problem for path in paths for problem in _unwritable(path, given, overwrite)]
    if problems:
        raise RequestError(problems)


def _unwritable(path: Path, given: Path, overwrite: bool) -> Iterator[Problem]:
    """Yield why a file must not, or cannot, be written."""
    try:
        if path.is_dir():
            yield Problem("is a folder, and a file is to be written", str(path), "name a file in it")
        elif path.exists() and given.exists() and path.samefile(given):
            yield Problem("is what the command reads", str(path), "choose another name")
        elif path.exists() and not overwrite:
            yield Problem("the file exists", str(path), "choose another name, or allow --overwrite")
        elif not path.parent.is_dir():
            yield Problem("there is no such folder", str(path.parent), "make it first")
    except OSError as error:
        yield Problem(f"cannot be looked at ({error.strerror})", str(path), "choose another name")


def target_of(folder: Path | None, out: Path | None, command: str) -> Path:
    """Return the folder that a command is to make, as its argument or its option names it."""
    if folder is not None and out is not None and folder != out:
        raise RequestError(Problem(f"two folders are named, {folder} and {out}", command, "name one"))
    target = folder or out
    if target is None:
        hint = f"write it after the recipe: submerge {command} recipe.yaml merged/"
        raise RequestError(Problem("no folder to make is named", command, hint))
    return target


@contextmanager
def resumable(out: Path) -> Iterator[None]:
    """Say of work that is interrupted inside how it can go on."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        hint = "the same command with --resume goes on from here"
        print(f"interrupted: {out} is untouched; {hint}", file=sys.stderr)
        raise
