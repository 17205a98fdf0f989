from collections.abc import Callable, Generator
from typing import Any

import pytest

from submerge.errors import RequestError
from submerge.methods import REQUIRED, Method, Option
from submerge.recipe import load_recipe


def _plan(spec: Any, values: Any) -> Generator[Any, Any, Any]:
    raise AssertionError("recipes never run a method")
    yield


def make_method(name: str, *options: Option, **contract: Any) -> Method:
    return Method(
        name=name, title=name, equation="", source="", use="", plan=_plan, options=options, **contract
    )


WEIGHT = Option("weight", float, REQUIRED, "share", scope="model")

TOYS = {
    method.name: method
    for method in (
        make_method(
            "updates",
            WEIGHT,
            Option("density", float, 1.0, "kept", scope="model", low=0, high=1),
            Option("layers", int, 3, "whole", scope="model"),
            Option("mode", str, "fast", "how", scope="model", choices=("fast", "slow", "1e-3")),
            Option("normalize", bool, False, "divide"),
            Option("lambda", float, 1.0, "factor"),
            Option("count", int, 2, "how many", low=0),
        ),
        make_method("zero", WEIGHT, origin="zero"),
        make_method("zero_base", WEIGHT, origin="zero", base_is_model=True),
        make_method("must", Option("t", float, REQUIRED, "where"), origin="zero", base_is_model=True,
                    base_required=True, min_models=2, max_models=2),
        make_method("bare", origin="zero", base_is_model=True, max_models=4),
        make_method("either", origin="either", min_models=2),
    )
}  # fmt: skip


@pytest.fixture
def toys() -> dict[str, Method]:
    return dict(TOYS)


@pytest.fixture
def problems() -> Callable[..., list[str]]:

    def messages(source: Any, methods: Any = TOYS) -> list[str]:
        with pytest.raises(RequestError) as caught:
            load_recipe(source, methods=methods)
        return [str(problem) for problem in caught.value.problems]

    return messages
