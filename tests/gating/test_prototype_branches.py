"""Parameter sets that are mixed by what a module is given, against each set by itself."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from _gated import Projector, normal
from submerge.algebra import CosineScores, Prototypes
from submerge.errors import RequestError
from submerge.gating import (
    Gate,
    MixtureAssignment,
    ModuleInputs,
    PrototypeAssignment,
    PrototypeBranches,
    Recent,
    branch_module,
)


def projectors(count: int, seed: int = 0) -> list[Projector]:
    torch.manual_seed(seed)
    return [Projector().double() for _ in range(count)]


def branched(modules: Sequence[nn.Module], prototypes: Prototypes, **rules: Any) -> tuple[nn.Module, Gate]:
    """Return a module that mixes the others, and its gate."""
    gate, module = Gate(Recent(0)), copy.deepcopy(modules[0])
    sets = [dict(one.state_dict()) for one in modules]
    groups = CosineScores(prototypes, centred=True)
    branch_module(module, PrototypeBranches(gate, sets, groups, **{"temperature": 0.2, **rules}))
    return module, gate


def dense(modules: Sequence[nn.Module], weights: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return Σ_k w_k g_k(x) by rows."""
    return sum(w.view(-1, *[1] * (x.ndim - 1)) * one(x) for w, one in zip(weights.T, modules, strict=True))  # type: ignore[return-value]


@given(st.integers(0, 2**31), st.integers(1, 5), st.lists(st.integers(1, 3), min_size=1, max_size=4))
@torch.no_grad()
def test_outputs_are_mixed_by_the_mean_of_an_inputs_rows(seed: int, count: int, rows: list[int]) -> None:
    modules = projectors(count, seed)
    prototypes = Prototypes(list(normal(seed, count, 2, 6, dtype=torch.float64)))
    module, gate = branched(modules, prototypes)
    x = normal(seed + 1, sum(rows), 5, 6, dtype=torch.float64)
    assignment = PrototypeAssignment([ModuleInputs(len(rows), rows)])
    with gate.over(assignment):
        found = module(x)
    pooled = torch.stack([part.float().flatten(0, 1).mean(0) for part in torch.split(x, rows)])
    weights = prototypes.weights(pooled, temperature=0.2, centred=True)
    torch.testing.assert_close(assignment.weights[0], weights, rtol=1e-5, atol=1e-6)
    used = assignment.weights[0].repeat_interleave(torch.tensor(rows), dim=0)
    torch.testing.assert_close(found, dense(modules, used, x))
    if count == 1:
        assert torch.equal(found, modules[0](x))


@torch.no_grad()
def test_without_an_assignment_each_row_stands_for_itself() -> None:
    modules, prototypes = projectors(3), Prototypes(list(normal(1, 3, 6, dtype=torch.float64)))
    module, gate = branched(modules, prototypes)
    x = normal(2, 4, 5, 6, dtype=torch.float64)
    assignment = PrototypeAssignment()
    with gate.over(assignment):
        noted = module(x)
    assert torch.equal(module(x), noted)
    torch.testing.assert_close(noted, dense(modules, assignment.weights[0], x))
    rows = torch.cat([module(row[None]) for row in x])
    torch.testing.assert_close(rows, noted, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_weights_and_similarities_from_elsewhere() -> None:
    modules, prototypes = projectors(3), Prototypes(list(normal(1, 3, 6, dtype=torch.float64)))
    module, gate = branched(modules, prototypes)
    x, weights = normal(2, 4, 5, 6, dtype=torch.float64), torch.eye(3)[[2, 0, 0, 1]].double()
    for assignment in (MixtureAssignment(weights), PrototypeAssignment([ModuleInputs(4, weights=weights)])):
        with gate.over(assignment):
            torch.testing.assert_close(module(x), dense(modules, weights, x))
    for_all = PrototypeAssignment([ModuleInputs(weights=weights[:1])])
    with gate.over(for_all):
        assert torch.equal(module(x), modules[2](x))
    own = prototypes.similarity(x.float().mean(1), centred=True)
    both = PrototypeAssignment([ModuleInputs(4, similarity=weights)])
    with gate.over(both):
        module(x)
    torch.testing.assert_close(both.weights[0], ((own + weights) / 0.4).softmax(1))


@torch.no_grad()
def test_calls_follow_in_their_order_and_are_repeated() -> None:
    modules = projectors(2)
    module, gate = branched(modules, Prototypes(list(normal(1, 2, 6, dtype=torch.float64))))
    first, second = torch.eye(2).double()[:1], torch.eye(2).double()[1:]
    assignment = PrototypeAssignment([ModuleInputs(1, weights=first), ModuleInputs(1, weights=second)])
    x = normal(2, 1, 5, 6, dtype=torch.float64)
    with gate.over(assignment):
        for number in range(4):
            assert torch.equal(module(x), modules[number % 2](x))


@torch.no_grad()
def test_rows_that_are_repeated_for_beams() -> None:
    modules = projectors(2)
    module, gate = branched(modules, Prototypes(list(normal(1, 2, 6, dtype=torch.float64))))
    x = normal(2, 3, 5, 6, dtype=torch.float64)
    for rows in ((1, 2), ()):
        inputs = ModuleInputs(2 if rows else 3, rows)
        with gate.over(PrototypeAssignment([inputs])):
            once = module(x)
        order = [0, 0, 1, 2, 1, 2] if rows else [0, 0, 1, 1, 2, 2]
        with gate.over(PrototypeAssignment([inputs])):
            torch.testing.assert_close(module(x[order]), once[order], rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_by_position_and_without() -> None:
    modules = projectors(2)
    x = normal(2, 4, 5, 6, dtype=torch.float64)
    by_position, _ = branched(
        modules, Prototypes([x[0].flatten(), x[1].flatten()]), by_position=True, temperature=0.0
    )
    torch.testing.assert_close(by_position(x[:2]), torch.stack([modules[0](x[0]), modules[1](x[1])]))
    module, gate = branched(modules, Prototypes([x[0].flatten(), x[1].flatten()]), by_position=True)
    with gate.over(PrototypeAssignment([ModuleInputs(2)])):
        flat = module(x[:2].flatten(0, 1))  # as of Voxtral: rows of all inputs
        torch.testing.assert_close(flat.unflatten(0, (2, 5)), module(x[:2]))


@pytest.mark.parametrize(
    ("inputs", "shape"),
    [(ModuleInputs(3), (4, 5, 6)), (ModuleInputs(2, (1, 2)), (4, 5, 6)), (ModuleInputs(), (4, 6))],
)
def test_rows_that_do_not_add_up(inputs: ModuleInputs, shape: tuple[int, ...]) -> None:
    module, gate = branched(projectors(2), Prototypes(list(normal(1, 2, 6, dtype=torch.float64))))
    with (
        gate.over(PrototypeAssignment([inputs])),
        pytest.raises(RequestError, match="the projector is given"),
    ):
        module(normal(1, *shape, dtype=torch.float64))


@torch.no_grad()
def test_only_sets_with_a_weight_run(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = projectors(3)
    x = normal(2, 3, 5, 6, dtype=torch.float64)
    module, _ = branched(modules, Prototypes([*x.mean(1)]), top=1)
    runs: list[tuple[int, int]] = []
    branches: Any = module.get_submodule("submerge")
    run = branches.run

    def count(module: nn.Module, branch: int, args: Any, kwargs: Any) -> Any:
        runs.append((branch, len(args[0])))
        return run(module, branch, args, kwargs)

    monkeypatch.setattr(branches, "run", count)
    module(x[[0, 2, 2]])
    assert runs == [(0, 1), (2, 2)]
