"""What the engine does for each need of a gate, and does not for a gate without it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import submerge
from _models import CONFIG, ROOM, SMALL, Family, perturbed, state, write
from submerge.engine import MergePlan, describe
from submerge.errors import RequestError
from submerge.methods import METHODS, GateSpec, Method

MASS = METHODS["mass"]


def gated(**needs: Any) -> Method:
    """Return MASS with a gate that has other needs."""
    assert MASS.gate is not None
    return replace(MASS, name="gated", gate=replace(MASS.gate, **needs))


@pytest.fixture
def made(tmp_path: Path) -> Family:
    base = state()
    tuned = []
    for t in range(2):
        own = perturbed(base, t) | {"classifier.weight": torch.ones(2 + t, 16)}
        own["lm_head.weight"] = torch.ones(41, 16)
        tuned.append(write(tmp_path / f"tuned{t}", own, CONFIG))
    return Family(write(tmp_path / "base", base, CONFIG), tuple(tuned), "ToyModel")


def plan(made: Family, method: Method, **more: Any) -> MergePlan:
    source = made.recipe("mass") | {"merge_method": "gated"} | more
    return submerge.plan(submerge.load_recipe(source, methods={"gated": method}), ROOM)


def test_every_tensor(made: Family) -> None:
    """`matrix` gets all tensors, or weight matrices alone, and those as matrices."""
    by_name = {t.name: t for t in plan(made, gated()).tensors if t.treatment == "merge"}
    assert all(t.matrix for t in by_name.values())
    some = {t.name: t.matrix for t in plan(made, gated(every_tensor=False)).tensors if t.treatment == "merge"}
    assert some == {name: name.endswith(("q.weight", "up.weight")) for name in by_name}


def test_own_heads(made: Family) -> None:
    gate = plan(made, gated()).gate
    assert gate is not None
    assert [sorted(task.head) for task in gate.tasks] == [["classifier.weight", "lm_head.weight"]] * 2
    with pytest.raises(RequestError, match=r"shapes differ from .*base's: lm_head\.weight"):
        plan(made, gated(own_heads=False))
    without = plan(made, gated(own_heads=False), rules={"shape": "base"})
    assert without.gate is not None
    assert [dict(task.head) for task in without.gate.tasks] == [{}, {}]
    assert all("classifier.weight" in names for names in without.unused.values())


def test_the_head_of_a_recipe_needs_own_heads(made: Family) -> None:
    models = [{"model": str(t), "head": "lm_head"} for t in made.tuned]
    assert plan(made, gated(), models=models).gate is not None
    with pytest.raises(RequestError, match=r"'head' .* gated"):
        plan(made, gated(own_heads=False), models=models)


def test_partial_models(made: Family) -> None:
    shapes = {name: shape for name, shape in SMALL.items() if name != "model.embed_tokens.weight"}
    write(made.tuned[0], perturbed(state(shapes), 0) | {"classifier.weight": torch.ones(2, 16)}, CONFIG)
    assert [t.inputs[0].note for t in plan(made, gated()).tensors if t.name == "model.embed_tokens.weight"]
    with pytest.raises(RequestError, match=r"model.embed_tokens.weight"):
        plan(made, gated(partial_models=False))


def test_adapter_output(made: Family) -> None:
    output = {"as": "adapter"}
    with pytest.raises(RequestError, match="keeps a gate over its tasks, and an adapter has no place"):
        plan(made, gated(), output=output)
    assert plan(made, gated(adapter_output=True), output=output).gate is not None


def test_bound(made: Family) -> None:
    bounded, unbounded = plan(made, gated()), plan(made, gated(bound=None))
    assert bounded.gate is not None
    heads = sum(t.nbytes for task in bounded.gate.tasks for t in task.head.values())
    assert describe(bounded)["bank"]["most"] > heads
    assert describe(unbounded)["bank"]["most"] == heads
    assert bounded.budget.peak > unbounded.budget.peak, "factors for the bank are held besides"


def test_a_gate_needs_nothing_but_settings() -> None:
    spec = GateSpec(settings=lambda given, shapes, count: {})
    assert (spec.bound, spec.every_tensor, spec.own_heads, spec.partial_models, spec.adapter_output) == (
        None, False, False, False, False,
    )  # fmt: skip
