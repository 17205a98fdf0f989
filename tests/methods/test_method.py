"""What a method says of itself: here the check of its options."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import submerge
from _models import ROOM, family
from submerge.algebra import Gram, combine
from submerge.errors import Problem, RequestError
from submerge.methods import METHODS, FoldPlan, Method, Option, TensorSpec, Values

SPEC = TensorSpec("w", (4,), 2)
OPTIONS = (Option("level", float, 1.0, "below 1 is refused"),)


def refuse(spec: TensorSpec, o: Values) -> None:
    if o["level"] < 1:
        raise RequestError(Problem("level is too low", f"tensor {spec.name}", "take 1"))


def method(plan: Any, **more: Any) -> Method:
    return Method("leveled", "Leveled", "θ", "a test", "never", plan, OPTIONS, **more)


def mean(spec: TensorSpec, o: Values) -> FoldPlan:
    yield Gram()
    return lambda chunk: combine(chunk.updates, [1 / spec.count] * spec.count)


def refusing(spec: TensorSpec, o: Values) -> FoldPlan:
    refuse(spec, o)
    return (yield from mean(spec, o))


@pytest.mark.parametrize("leveled", [method(mean, refuse=refuse), method(refusing)])
def test_options_are_refused_by_a_function_or_by_the_plan_before_its_first_reduction(leveled: Method) -> None:
    leveled.check(SPEC, {"level": 1})
    with pytest.raises(RequestError, match="level is too low"):
        leveled.check(SPEC, {"level": 0.5})


@pytest.mark.parametrize("leveled", [method(mean, refuse=refuse), method(refusing)])
def test_refused_options_are_problems_of_the_plan(leveled: Method, tmp_path: Path) -> None:
    made = family(tmp_path)
    source = made.recipe("tsv_m", {"level": [{"filter": "norm", "value": 0.5}, {"value": 2}]})
    source |= {"merge_method": "leveled", "models": [{"model": str(t)} for t in made.tuned]}
    recipe = submerge.load_recipe(source, methods={"leveled": leveled})
    with pytest.raises(RequestError) as caught:
        submerge.merge(recipe, tmp_path / "out", settings=ROOM)
    (problem,) = caught.value.problems
    assert (problem.what, problem.hint) == (
        "level is too low: model.layers.0.norm.weight, model.layers.1.norm.weight, model.norm.weight",
        "take 1",
    )
    assert not list(tmp_path.glob("out*")), "nothing was begun"


def test_the_plan_is_closed_after_the_check() -> None:
    closed = []

    def plan(spec: TensorSpec, o: Values) -> Iterator[Any]:
        try:
            yield Gram()
        finally:
            closed.append(spec.name)

    method(plan).check(SPEC, {"level": 1})
    assert closed == ["w"]


def test_a_check_of_its_own_starts_no_plan() -> None:
    def plan(spec: TensorSpec, o: Values) -> FoldPlan:
        raise AssertionError
        yield

    method(plan, refuse=refuse).check(SPEC, {"level": 1})


def test_our_methods_that_refuse_do_it_without_a_plan() -> None:
    refusing = {name for name, one in METHODS.items() if one.refuse}
    assert refusing == {"linear", "multislerp", "ssam", "mass", "della", "della_linear", "many", "regmean"}
