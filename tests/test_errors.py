"""How problems are told: lists that end, names that are near, sizes that a person reads."""

from pathlib import Path

import pytest

from submerge.errors import (
    Problem,
    RequestError,
    WorkError,
    did_you_mean,
    few,
    first_line,
    nearest,
    size,
    writing,
)


def test_few() -> None:
    assert few([]) == ""
    assert few(["a", "b", "c"]) == "a, b, c"
    assert few(iter("abcde")) == "a, b, c and 2 more"
    assert few("abc", most=1) == "a and 2 more"


def test_an_error_is_told_by_its_first_line() -> None:
    assert first_line(ValueError("\nno such file\nat line 3")) == "no such file"
    assert first_line(OSError()) == "OSError", "where it says nothing"


def test_the_nearest_name_is_offered() -> None:
    assert nearest("densty", ["density", "weight"]) == "density"
    assert nearest("x", ["density", "weight"]) is None
    assert nearest("x", []) is None
    assert nearest("task-vector", ["Task_Vector", "ties"]) == "Task_Vector"
    assert did_you_mean("Densty", ["density", "weight"]) == "did you mean 'density'?"
    assert did_you_mean("x", ["density", "weight"]) == "there are density, weight"
    assert did_you_mean("x", ["density"], "give a share") == "give a share"


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (999_499, "999 kB"), (999_500, "1 MB"), (2.2e9, "2.2 GB"),
     (1.5e12, "1.5 TB")],
)  # fmt: skip
def test_size(count: float, text: str) -> None:
    assert size(count) == text


def test_a_problem_is_told_with_its_place_and_a_way_out() -> None:
    assert str(Problem("wrong")) == "wrong"
    assert str(Problem("wrong", "file")) == "file: wrong"
    assert str(Problem("wrong", "", "mend it")) == "wrong — mend it"


def test_all_problems_are_told_at_once() -> None:
    problems = [Problem("one", "a"), Problem("two", "b")]
    error = RequestError(problems)
    assert str(error) == "a: one\nb: two"
    assert error.problems == tuple(problems)
    assert RequestError("one").problems == (Problem("one"),)
    assert RequestError(problems[0]).problems == (problems[0],)
    assert (RequestError("x").exit_code, WorkError("x").exit_code) == (2, 1)


def test_what_the_disk_refuses_is_told_with_its_reason(tmp_path: Path) -> None:
    told = "state: cannot be written (Is a directory) — free some space"
    with pytest.raises(WorkError) as raised, writing("state: cannot be written", "free some space"):
        tmp_path.write_text("")
    assert (str(raised.value), type(raised.value.__cause__)) == (told, IsADirectoryError)
    with pytest.raises(ValueError, match="another"), writing("state: cannot be written"):
        raise ValueError("another")
