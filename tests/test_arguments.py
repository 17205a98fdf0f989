"""Arguments of wrong types are told by their names, before anything is read."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import submerge
from submerge.arguments import checked, is_count, is_finite_number, is_whole_number
from submerge.errors import RequestError

ANYTHING = {"data", "processor", "states", "base"}
"""Arguments that may be of types that are not told apart by their classes, of some functions."""


FUNCTIONS = [name for name in submerge.__all__ if name.islower() and name not in ("__version__", "methods")]
METHODS = ["__init__", "add", "begin", "export", "join", "record", "remove", "status"]


@pytest.mark.parametrize("name", [*FUNCTIONS, *(f"Continual.{name}" for name in METHODS)])
def test_each_argument_of_a_wrong_type_is_named(name: str) -> None:
    function: Any = operator.attrgetter(name)(submerge)
    if name.startswith("Continual.") and not inspect.ismethod(function):
        function = function.__get__(object())
    parameters = inspect.signature(function).parameters.values()
    names = {p.name for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD}
    with pytest.raises(RequestError) as error:
        function(**{name: object() for name in names})
    told = {problem.where for problem in error.value.problems}
    assert told <= names
    assert names - told <= ANYTHING | {"model"} if function.__name__ == "merge_adapters" else ANYTHING


@checked
def example(
    place: str | Path = "x",
    *,
    count: int | None = None,
    share: float = 0.5,
    flag: bool = False,
    names: Sequence[str] = (),
    table: Mapping[str, int] = {},
    then: Callable[[], None] | None = None,
    anything: Any = None,
    **more: Any,
) -> str:
    return f"{place} {count} {share} {flag}"


@pytest.mark.parametrize(
    "given",
    [
        {"place": Path("a")},
        {"count": np.int64(3), "share": np.float32(1)},
        {"share": 1, "names": np.zeros(2), "anything": 3},
        {"names": ["a"], "table": {"a": 1}, "then": print},
        {"other": object()},
    ],
)
def test_what_is_like_the_type_is_taken(given: dict[str, Any]) -> None:
    assert example(**given)


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"place": 3}, r"place: takes text or a path, and not 3 — see help\(example\)"),
        ({"count": 1.5}, "count: takes a whole number or None, and not 1.5"),
        ({"count": True}, "count: takes a whole number or None, and not True"),
        ({"share": "1"}, "share: takes a number, and not '1'"),
        ({"flag": 1}, "flag: takes True or False, and not 1"),
        ({"table": [1], "names": 4}, r"names: takes a sequence, .*\ntable: takes a mapping"),
        ({"then": "print"}, "then: takes a function or None"),
    ],
)
def test_what_is_not_is_told(given: dict[str, Any], what: str) -> None:
    with pytest.raises(RequestError, match=what):
        example(**given)


def test_names_that_there_are_not(tmp_path: Path) -> None:
    class State(submerge.Continual):
        def __init__(self) -> None:
            pass

    with pytest.raises(RequestError, match="there is no argument 'sample' — did you mean 'samples'"):
        State().add("a", "b", sample=3)
    with pytest.raises(RequestError, match="progress: takes a function or None, and not 3"):
        State().add("a", "b", progress=3)
    with pytest.raises(RequestError, match="no such device"):
        State().add("a", "b", device=[1])


def test_devices_of_torch_are_taken() -> None:
    state = {"a": torch.ones(2)}
    merged = submerge.merge_state_dicts([state], device=torch.device("cpu"), weight=1.0)
    assert torch.equal(merged["a"], state["a"])


def test_numbers_are_told_from_what_only_looks_like_them() -> None:
    given = [1, 0, True, 1.5, 10**400, float("nan"), float("inf"), "1", None]
    assert [value for value in given if is_whole_number(value)] == [1, 0, 10**400]
    assert [value for value in given if is_count(value)] == [1, 10**400]
    assert [value for value in given if is_finite_number(value)] == [1, 0, 1.5]
