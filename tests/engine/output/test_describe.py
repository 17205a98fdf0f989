"""A plan as plain data: its groups hold every tensor once, and its bytes are those of the files."""

import json

import pytest

import submerge
from _models import ROOM, SMALL, Family, family, read
from submerge.engine import MergePlan, explain
from submerge.engine.output import describe
from submerge.errors import RequestError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return family(tmp_path_factory.mktemp("models"), count=2)


@pytest.fixture(scope="module")
def plan(made: Family) -> MergePlan:
    recipe = made.recipe("ties", {"density": [{"filter": "mlp", "value": [0.2, 0.8]}, {"value": 0.5}]})
    return submerge.plan(recipe, ROOM)


def test_it_is_json_with_every_tensor_in_one_group(plan: MergePlan) -> None:
    told = json.loads(json.dumps(describe(plan)))
    assert sum(group["count"] for group in told["groups"]) == len(SMALL)
    patterns = [group["tensors"] for group in told["groups"]]
    assert patterns.count("model.layers.*.mlp.up.weight") == 1
    assert sum(group["elements"] for group in told["groups"]) == sum(t.numel for t in plan.tensors)


def test_bytes_are_those_of_the_values(plan: MergePlan, made: Family) -> None:
    nbytes = sum(tensor.nbytes for tensor in read(made.base).values())
    told = describe(plan)
    assert [model["bytes"] for model in told["models"]] == [nbytes] * 3
    assert [model["role"] for model in told["models"]] == ["base", "merged", "merged"]
    (size,) = told["files"].values()
    assert told["writes"] == size > nbytes


@pytest.mark.parametrize(
    ("pattern", "count"), [("mlp", 2), ("*.mlp.*", 2), ("layers.0", 3), ("*norm.weight", 3), ("", len(SMALL))]
)
def test_tensors_are_chosen_by_a_part_or_a_pattern(plan: MergePlan, pattern: str, count: int) -> None:
    lines = explain(plan, pattern)
    assert len(lines) == count
    assert [line["tensor"] for line in lines] == [t.name for t in plan.tensors if line_of(t.name, lines)]


def line_of(name: str, lines: list[dict[str, object]]) -> bool:
    return any(line["tensor"] == name for line in lines)


def test_options_are_those_at_the_depth_of_the_layer(plan: MergePlan) -> None:
    density = {
        line["tensor"]: {option["value"] for option in line["options"]["density"]}
        for line in explain(plan, "weight")
    }
    assert density["model.layers.0.mlp.up.weight"] == {0.2}
    assert density["model.layers.1.mlp.up.weight"] == {0.8}
    assert density["model.norm.weight"] == {0.5}


def test_a_pattern_that_fits_nothing(plan: MergePlan) -> None:
    with pytest.raises(RequestError, match="no tensor matches 'nothing' — names look like"):
        explain(plan, "nothing")
