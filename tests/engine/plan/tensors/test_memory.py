"""The memory that a plan counts with: more of what is held means more, and no worker more than fits."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

import submerge
from _models import ROOM, Family, family
from submerge.engine.plan.tensors import _memory

SHAPES = {"a.weight": (64, 48), "b.weight": (16,)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return family(tmp_path_factory.mktemp("models"), count=3, shapes=SHAPES)


def per_worker(made: Family, method: str, count: int = 3) -> int:
    recipe = replace(made, tuned=made.tuned[:count]).recipe(method)
    return submerge.plan(recipe, ROOM).budget.per_worker


def test_more_models_take_more(made: Family) -> None:
    assert per_worker(made, "ties", 3) > per_worker(made, "ties", 2) > 0


def test_a_larger_tensor_takes_more(made: Family, tmp_path: Path) -> None:
    larger = family(tmp_path, count=3, shapes={**SHAPES, "a.weight": (640, 480)})
    for method in ("ties", "tsv_m"):
        assert per_worker(larger, method) > per_worker(made, method)


def test_matrices_that_are_decomposed_take_more_than_their_chunks(made: Family) -> None:
    assert per_worker(made, "iso_c") > per_worker(made, "task_arithmetic")


def test_packages_that_are_still_to_be_imported_count(made: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_memory, "resident", lambda: 10**8)
    monkeypatch.setattr(_memory, "worth_compiling", lambda elements: elements == 64 * 48 + 16)
    for missing, method, more in (
        ({"numba"}, "ties", _memory.NUMBA),
        ({"torch"}, "ties", 0),
        ({"numba", "torch"}, "tsv_m", _memory.NUMBA + _memory.TORCH),
    ):
        monkeypatch.setattr(_memory, "sys", SimpleNamespace(modules={"numba", "torch"} - missing))
        assert submerge.plan(made.recipe(method), ROOM).budget.resident == 10**8 + more


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_workers_that_fit(made: Family, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_memory, "resident", lambda: 10**8)
    budget = submerge.plan(made.recipe("ties"), replace(ROOM, threads=8)).budget
    assert (budget.workers, budget.resident) == (8, 10**8)
    room = budget.peak - (8 - workers) * budget.per_worker
    fewer = submerge.plan(made.recipe("ties"), replace(ROOM, threads=8, max_memory=room)).budget
    assert (fewer.workers, fewer.peak) == (workers, room)
    with pytest.raises(submerge.RequestError, match="do not hold one worker"):
        submerge.plan(made.recipe("ties"), replace(ROOM, max_memory=room - workers * budget.per_worker))
