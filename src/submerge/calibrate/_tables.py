"""The rows of tables with a header, and what double quotes mean in them."""

from __future__ import annotations

import csv
import re
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from submerge.errors import Problem, RequestError, few

__all__ = ["read_tabbed_table", "read_table"]

_TOLD = re.compile(r'"?sep=(?P<mark>[^"])"?', re.IGNORECASE)
"""A line before the header that says what stands between cells."""
_LIMIT = threading.Lock()
"""Held while the longest cell that `csv` reads, which is one number for all of the process, is ours."""


def read_table(file: TextIO, path: Path) -> Iterator[tuple[str, Any]]:
    """Yield each row of a table in which texts may stand between double quotes.

    What stands between its cells is told from the header: spreadsheets write semicolons in many languages.
    Where a line `sep=;` comes before it, as for Excel, that tells it.
    """
    header = _first_line(file)
    told = _told(header)
    return (told or _Reading(next((mark for mark in ",;\t|" if mark in header), ","))).rows(file, path)


def read_tabbed_table(file: TextIO, path: Path) -> Iterator[tuple[str, Any]]:
    """Yield each row of a table with tabs, in which double quotes have a meaning or none, as its rows tell.

    pandas and spreadsheets write texts with quotes between quotes, and double those within. The files of GLUE
    and of other data sets have no quoting: each line is a row, and quotes belong to the text. Where both fit,
    quotes have their meaning, unless the rows would be others.
    """
    if told := _told(_first_line(file)):
        return told.rows(file, path)
    file.seek(0)
    quoted, plain = _Reading("\t"), _Reading("\t", literal=True)
    if not any('"' in line for line in file):
        return quoted.rows(file, path)
    of_quoted = replace(quoted, exact=True).fit(file, path)
    if not of_quoted.problem and not of_quoted.joins_lines:  # then without quoting the rows are the same
        return quoted.rows(file, path)
    of_plain = replace(plain, exact=True).fit(file, path)
    chosen = plain if of_quoted.problem and not of_plain.problem else quoted
    if not of_quoted.problem and not of_plain.problem and of_quoted.rows != of_plain.rows:
        raise RequestError(_ambiguous(file, path))
    if of_quoted.problem and of_plain.problem and (found := quoted.fit(file, path).problem):
        more = f"; without a meaning of quotes {of_plain.problem.where} {of_plain.problem.what}"
        raise RequestError(replace(found, hint=found.hint + more))
    return chosen.rows(file, path)


def _first_line(file: TextIO) -> str:
    return next((line for line in file if line.strip()), "").rstrip("\r\n")


def _told(line: str) -> _Reading | None:
    """Return how a table is read whose first line says it; None where the line is its header."""
    told = _TOLD.fullmatch(line)
    return _Reading(told["mark"], told=True) if told else None


def _ambiguous(file: TextIO, path: Path) -> Problem:
    """Return the problem of a table whose quotes may hold several lines, or stand in each of them."""
    ends = [
        [where for where, _ in _Reading("\t", literal=literal).rows(file, path)] for literal in (False, True)
    ]
    where = next(plain for quoted, plain in zip(*ends, strict=False) if quoted != plain)
    what = "a double quote begins here that a later line ends: this may be one text, or several rows"
    hint = "name the file .csv if it is one text, and write it as .jsonl if quotes belong to the texts"
    return Problem(what, where, hint)


class _TableRow(NamedTuple):
    """Where a row ends, the names of its columns, its cells, and how many lines it takes."""

    where: str
    names: list[str]
    cells: list[str]
    lines: int


@dataclass(frozen=True)
class _Fit:
    """How many rows a reading of a table gave, up to what was wrong with one.

    `joins_lines` says that a row holds several lines.
    """

    rows: int
    joins_lines: bool = False
    problem: Problem | None = None


@dataclass(frozen=True)
class _Reading:
    """A way to read a table; of one that is `exact` each row has as many cells as the header."""

    delimiter: str
    literal: bool = False
    exact: bool = False
    told: bool = False
    """Whether a line before the header says what the delimiter is."""

    def fit(self, file: TextIO, path: Path) -> _Fit:
        """Return whether a table can be read so."""
        file.seek(0)
        count, joins = 0, False
        try:
            for row in self._cells(file, path):
                count += 1
                joins |= row.lines > 1
        except RequestError as error:
            return _Fit(count, joins, error.problems[0])
        return _Fit(count, joins)

    def rows(self, file: TextIO, path: Path) -> Iterator[tuple[str, Any]]:
        """Yield each row by column, with the number of the line at which it ends."""
        file.seek(0)
        for row in self._cells(file, path):
            yield row.where, dict(zip_longest(row.names, row.cells[: len(row.names)]))

    def _cells(self, file: TextIO, path: Path) -> Iterator[_TableRow]:
        """Yield each row but the header and blank ones."""
        last = 0
        reader = csv.reader(
            file,
            delimiter=self.delimiter,
            quoting=csv.QUOTE_NONE if self.literal else csv.QUOTE_MINIMAL,
            strict=True,
        )
        rows = _of_any_length(reader)
        try:
            filled = filter(None, rows)
            if self.told:
                next(filled)
            header = next(filled, [])
            last = reader.line_num
            names = self._names(header, f"{path}:{last}")
            for cells in rows:
                lines, last = reader.line_num - last, reader.line_num
                if cells:
                    where = f"{path}:{last}"
                    self._check_count(names, cells, where)
                    yield _TableRow(where, names, cells, lines)
        except csv.Error as error:
            hint = 'a text between double quotes ends with one, and those within it are doubled: ""'
            where = f"{path}:{last + 1}"  # behind the last row that was read
            raise RequestError(Problem(f"is no table ({error})", where, hint)) from error

    def _names(self, header: Sequence[str], where: str) -> list[str]:
        """Return the names of columns; of two columns of one name the second would be read alone."""
        names = [name.strip() for name in header]
        if twice := [name for name, count in Counter(names).items() if name and count > 1]:
            raise RequestError(Problem(f"there are two columns {few(twice)}", where, "rename one of them"))
        if self.literal and any('"' in name for name in names):
            raise RequestError(Problem("has names of columns between double quotes", where, "remove these"))
        return names

    def _check_count(self, names: Sequence[str], cells: Sequence[str], where: str) -> None:
        """Raise `RequestError` where a row has more cells than the header, or of an exact table fewer."""
        if any(cells[len(names) :]) or (self.exact and len(cells) < len(names)):
            what = f"has {len(cells)} cells, and the header {len(names)}"
            hint = f"put texts that hold {self.delimiter!r} between double quotes"
            raise RequestError(Problem(what, where, hint))


def _of_any_length(rows: Iterator[list[str]]) -> Iterator[list[str]]:
    """Yield rows whose cells may be longer than `csv` has it, without a change for others that use it."""
    while True:
        with _LIMIT:
            before = csv.field_size_limit(sys.maxsize)
            try:
                row = next(rows, None)
            finally:
                csv.field_size_limit(before)
        if row is None:
            return
        yield row
