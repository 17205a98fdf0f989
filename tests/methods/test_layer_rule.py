"""The setting `routing_layers`: what each form accepts, and what a model lacks for it."""

from __future__ import annotations

import pytest

from submerge import RequestError
from submerge.methods.mass import LayerRule

STACK, COUNT = "bert.encoder.layer", 12


def accepted(text: str, stack: str = STACK, count: int = COUNT) -> list[int]:
    rule = LayerRule.parse(text)
    return [
        i for i in range(count) if rule.accepts(stack, i, count, [f"{stack}.{i}.mlp.up", f"{stack}.{i}.v"])
    ]


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("auto", range(12)),
        ("all", range(12)),
        ("paper", [9]),
        ("first:3", [0, 1, 2]),
        ("first:3.0", [0, 1, 2]),
        ("first:100", range(12)),
        ("depth:0.75", [9]),
        ("depth:0", [0]),
        ("0,2-4", [0, 2, 3, 4]),
        (" 0, 2-4 ", [0, 2, 3, 4]),
        ("5", [5]),
        ("4-2", []),
        ("mlp", range(12)),
        ("layer.1.mlp", [1]),
        ("nowhere", []),
        ("2-", []),
        ("layer.1", [1, 10, 11]),
    ],
)
def test_what_a_rule_accepts(text: str, layers: list[int]) -> None:
    assert accepted(text) == list(layers)
    assert LayerRule.parse(text).text == text


def test_the_paper_names_a_layer_for_each_kind_of_stack() -> None:
    assert accepted("paper", "vision_model.encoder.layers", 24) == [20]
    assert accepted("paper", "encoder.block", 12) == [10]
    assert accepted("paper", "model.layers", 6) == [4], "the share of the depth that 12 layers have"


@pytest.mark.parametrize(
    "text",
    ["depth:2", "depth:1", "depth:-0.1", "depth:nan", "first:0", "first:1.5", "first:inf", "first:x",
     "first:", "paper:1", "mlp:3", ":"],
)  # fmt: skip
def test_other_forms_are_refused(text: str) -> None:
    with pytest.raises(RequestError) as caught:
        LayerRule.parse(text)
    (problem,) = caught.value.problems
    assert problem.what == f"routing_layers cannot be {text!r}"
    assert problem.where == "parameters.routing_layers"
    assert "first:3" in problem.hint


TENSORS = [f"{STACK}.{i}.mlp.up.weight" for i in range(3)] + ["pooler.weight"]


@pytest.mark.parametrize("text", ["all", "auto", "paper", "first:9", "depth:0.5", "0,2", "mlp", "pooler"])
def test_what_a_model_has(text: str) -> None:
    assert LayerRule.parse(text).problems(TENSORS) == []


@pytest.mark.parametrize(
    ("text", "tensors", "what"),
    [
        ("0,2-9", TENSORS, "routing_layers names layer 3; the model's layers are 0 to 2"),
        ("1", ["pooler.weight"], "routing_layers names layer 1; the model has no numbered layers"),
        ("attn", TENSORS, "routing_layers is 'attn', and no tensor has that in its name"),
    ],
)
def test_what_a_model_lacks(text: str, tensors: list[str], what: str) -> None:
    (problem,) = LayerRule.parse(text).problems(tensors)
    assert (problem.what, problem.where) == (what, "parameters.routing_layers")


def test_rules_are_values() -> None:
    assert LayerRule.parse("0-2") == LayerRule.parse("0-2")
    assert len({LayerRule.parse("first:3"), LayerRule.parse("first:3"), LayerRule.parse("all")}) == 2
