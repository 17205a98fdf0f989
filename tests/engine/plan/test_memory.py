"""How many workers fit into memory."""

from __future__ import annotations

import pytest

from engine.plan.helpers_plan import entry, inputs_of, model, recipe_of
from submerge.engine import TensorPlan
from submerge.engine.plan import _memory
from submerge.engine.plan._align import TensorPlanner
from submerge.engine.plan._memory import RESERVE, budget
from submerge.engine.plan._tensor_rules import TensorRules
from submerge.errors import RequestError

MB = 10**6


@pytest.fixture(autouse=True)
def process_of_100_mb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_memory, "resident", lambda: 100 * MB)


def plans(*names: str, shape: tuple[int, ...] = (2048, 2048)) -> list[TensorPlan]:
    recipe = recipe_of()
    models = [model(label, *(entry(name, shape) for name in names)) for label in ("base", "one", "two")]
    return TensorPlanner(TensorRules(recipe, inputs_of(recipe, *models), {}), [{}, {}, {}]).plan_all()


def test_all_workers_fit_into_much_memory() -> None:
    found = budget(plans("w"), 4, 10_000 * MB)
    assert (found.workers, found.resident) == (4, 100 * MB)
    assert found.peak == 100 * MB + RESERVE + 4 * found.per_worker


def test_fewer_workers_run_where_memory_is_short() -> None:
    per_worker = budget(plans("w"), 4, 10_000 * MB).per_worker
    assert budget(plans("w"), 4, 100 * MB + RESERVE + 3 * per_worker - 1).workers == 2


def test_not_even_one_worker_fits() -> None:
    with pytest.raises(RequestError, match="whose largest need is tensor w — allow at least"):
        budget(plans("w"), 4, 150 * MB)


def test_a_merge_of_nothing_needs_nothing() -> None:
    assert budget([], 3, 10_000 * MB).per_worker == 0
