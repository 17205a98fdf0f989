"""The journal: what was appended is read again, for the same work, as far as it is sound."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from submerge.errors import RequestError
from submerge.store.format import JOURNAL, Journal

HEAD = {"recipe": "abc"}
LINES = [{"t": 0, "out": "ä\n"}, {"t": 1, "out": ""}, {"t": 2, "in": [1, 2]}]


@contextmanager
def opened(folder: Path, head: dict[str, Any] = HEAD, *, resume: bool = True) -> Iterator[Journal]:
    journal = Journal(folder, head, resume=resume)
    try:
        yield journal
    finally:
        journal.close()


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """A folder whose journal holds the lines."""
    with opened(tmp_path) as journal:
        assert journal.lines == []
        for line in LINES:
            journal.append(line)
    return tmp_path


def test_lines_come_back_in_their_order(filled: Path) -> None:
    for _ in range(2):
        with opened(filled) as journal:
            assert journal.lines == LINES


def test_without_resume_it_starts_over(filled: Path) -> None:
    with opened(filled, resume=False) as journal:
        assert journal.lines == []
    with opened(filled) as journal:
        assert journal.lines == []


def test_other_work_is_refused_and_leaves_the_journal_as_it_is(filled: Path) -> None:
    before = (filled / JOURNAL).read_bytes()
    with pytest.raises(RequestError, match="start again without --resume"):
        Journal(filled, {"recipe": "other"}, resume=True)
    assert (filled / JOURNAL).read_bytes() == before


def test_it_is_locked_until_it_is_closed(filled: Path) -> None:
    with opened(filled) as journal:
        with pytest.raises(RequestError, match="another run is writing this output"):
            Journal(filled, HEAD, resume=True)
        journal.close()
        with opened(filled) as second:
            assert second.lines == LINES


@given(st.data())
def test_any_cut_leaves_the_lines_before_it(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    with opened(folder) as journal:
        for line in LINES:
            journal.append(line)
    file = folder / JOURNAL
    content = file.read_bytes()
    cut = data.draw(st.integers(0, len(content)))
    file.write_bytes(content[:cut])
    complete = content[:cut].count(b"\n") - 1  # the first is the head
    with opened(folder) as journal:
        assert journal.lines == LINES[: max(0, complete)]
        journal.append({"t": 9})
    with opened(folder) as journal:
        assert journal.lines == [*LINES[: max(0, complete)], {"t": 9}]


@pytest.mark.parametrize("damage", [b"\0\0\0\n", b"[1]\n", b'{"t": 1\n', b"\xff\n"])
def test_what_follows_damage_is_not_read(filled: Path, damage: bytes) -> None:
    file = filled / JOURNAL
    head, first, *rest = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([head, first, damage, *rest]))
    with opened(filled) as journal:
        assert journal.lines == LINES[:1]
    assert file.read_bytes() == head + first
