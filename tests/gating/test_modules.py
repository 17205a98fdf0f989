"""Gated modules against the same module with a weight of its own for each sample."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from _mass_reference import polar
from submerge.algebra import Bank, Triplets
from submerge.gating import (
    Gate,
    GatedDense,
    GatedFactors,
    Group,
    Recent,
    SampleAssignment,
    Span,
    UnsplitError,
    gate_module,
    ungate_module,
)

SPANS = [Span((0,), 0, 3), Span((0, 2), 3, 5), Span((1, 2, 3), 5, 6), Span((7,), 6, 7)]
"""Task 7 does not touch any layer."""
ASSIGNMENT = SampleAssignment(SPANS)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def parts(m: int, n: int, r: int = 2) -> dict[int, Triplets]:
    found = {}
    for t in range(4):
        u, s, vh = torch.linalg.svd(normal(t, m, n), full_matrices=False)
        found[t] = Triplets(u[:, :r], s[:r], vh[:r])
    return found


def gated(module: nn.Module, r: int = 2, transposed: bool = False) -> tuple[nn.Module, Gate, dict[str, Any]]:
    """Return the module gated in all its parameters, and what each set of tasks adds to them."""
    gate = Gate(Recent(1 << 20))
    updates: dict[str, Any] = {}
    for name, parameter in module.named_parameters():
        if parameter.ndim == 2:
            some = parts(*parameter.shape, r=r)
            table = isinstance(module, nn.Embedding)
            updates[name] = GatedFactors(
                gate, name, some, rule="tsv_m", scale=1.0, transposed=transposed, table=table
            )
        else:
            dense = {t: normal(50 + t, *parameter.shape) for t in range(4)}
            updates[name] = GatedDense(gate, name, dense)
    plain = copy.deepcopy(module)
    gate_module(gate, module, updates, "layer")
    return plain, gate, updates


def wanted(
    plain: nn.Module, updates: dict[str, Any], tasks: Sequence[int], x: torch.Tensor, **more: Any
) -> torch.Tensor:
    one = copy.deepcopy(plain)
    with torch.no_grad():
        for name, parameter in one.named_parameters():
            if isinstance(updates[name], GatedFactors):
                some = parts(*parameter.shape, r=updates[name].values.shape[0] // 4)
                parameter.add_(Bank(tuple(parameter.shape), some).merged(tasks).dense())
            else:
                update = updates[name].update(Group(tuple(t for t in tasks if t < 4), 0, len(x)))
                parameter.add_(0 if update is None else update)
        found: torch.Tensor = one(x, **more)
        return found


class Transposed(nn.Module):
    """A linear map that is stored as [in, out], as in GPT-2."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(normal(90, 16, 24)), nn.Parameter(normal(91, 24))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight + self.bias


Transposed.__name__ = "Conv1D"


def alike(m: int, n: int, angle: float = 1e-4) -> dict[int, Triplets]:
    """Return two tasks whose directions are that angle apart, each pair of them, in float32."""
    bases = [torch.linalg.qr(normal(seed, size, 6).double())[0] for seed, size in ((1, m), (2, n))]
    found = {}
    for t in range(2):
        u, v = (math.cos(t * angle) * q[:, :3] + math.sin(t * angle) * q[:, 3:] for q in bases)
        found[t] = Triplets(u.float(), torch.tensor([3.0, 2.0, 1.0]).roll(t), v.T.float().contiguous())
    return found


@pytest.mark.parametrize("kind", ["linear", "transposed", "embedding"])
@pytest.mark.parametrize("length", [1, 200])
def test_tasks_that_nearly_coincide_lose_nothing(kind: str, length: int) -> None:
    """One token, which goes through the factors, and many, which go through the dense weight."""
    make, inputs = KINDS[kind]
    module = make()
    some = alike(*module.weight.shape)
    u, s, v = (torch.cat(stack, d).double() for stack, d in (
        ([p.left for p in some.values()], 1),
        ([p.values for p in some.values()], 0),
        ([p.right for p in some.values()], 0),
    ))  # fmt: skip
    update = polar(u) @ s.diag() @ polar(v.T).T
    plain = copy.deepcopy(module).double()
    gate = Gate(Recent(1 << 20))
    more: dict[str, Any] = {"transposed": kind == "transposed", "table": kind == "embedding"}
    gate_module(
        gate, module, {"weight": GatedFactors(gate, "w", some, rule="tsv_m", scale=1.0, **more)}, "layer"
    )
    x = inputs(3)
    x = x.repeat(1, length, 1) if x.ndim == 3 else x
    with torch.no_grad():
        before = plain(x.double() if x.is_floating_point() else x)
        plain.weight.add_(update)
        after = plain(x.double() if x.is_floating_point() else x)
        with gate.over(SampleAssignment([Span((0, 1), 0, 3)])):
            found = module(x)
    assert (found - after).abs().max() < 2e-6 * after.abs().max()
    assert (after - before).abs().max() > 0.1 * after.abs().max(), "the update counts"


KINDS = {
    "linear": (lambda: nn.Linear(16, 24), lambda n: normal(n, n, 5, 16)),
    "no bias": (lambda: nn.Linear(16, 24, bias=False), lambda n: normal(n, n, 16)),
    "transposed": (Transposed, lambda n: normal(n, n, 5, 16)),
    "embedding": (lambda: nn.Embedding(16, 24), lambda n: torch.arange(n * 5).view(n, 5) % 16),
    "norm": (lambda: nn.LayerNorm(16), lambda n: normal(n, n, 5, 16)),
    "convolution": (lambda: nn.Conv2d(3, 8, 2, 2), lambda n: normal(n, n, 3, 4, 4)),
    "other norm": (lambda: nn.RMSNorm(16), lambda n: normal(n, n, 5, 16)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("length", [1, 80])
def test_each_sample_has_its_own_weights(kind: str, rows: int, length: int) -> None:
    """One or two rows a sample (beams), few tokens (factors) and many (dense updates)."""
    make, inputs = KINDS[kind]
    module = make()
    plain, gate, updates = gated(module, transposed=kind == "transposed")
    x = inputs(7 * rows)
    if length > 1 and x.ndim == 3:
        x = x.repeat(1, length, 1)
    with torch.no_grad(), gate.over(ASSIGNMENT):
        found = module(x)
    for span in SPANS:
        at = slice(span.start * rows, span.stop * rows)
        assert (found[at] - wanted(plain, updates, span.members, x[at])).abs().max() < 2e-5


@pytest.mark.parametrize("kind", KINDS)
def test_without_an_assignment_it_is_the_plain_module(kind: str) -> None:
    make, inputs = KINDS[kind]
    module = make()
    plain, _, _ = gated(module, transposed=kind == "transposed")
    with torch.no_grad():
        assert torch.equal(module(inputs(3)), plain(inputs(3)))
    assert list(module.state_dict()) == list(plain.state_dict())


def test_what_all_samples_share_is_repeated() -> None:
    module = nn.Embedding(16, 24)
    plain, gate, updates = gated(module)
    ids = torch.arange(5).unsqueeze(0)
    with torch.no_grad(), gate.over(ASSIGNMENT):
        found = module(ids)
    assert found.shape == (7, 5, 24)
    for span in SPANS:
        one = wanted(plain, updates, span.members, ids)
        assert (found[span.start : span.stop] - one).abs().max() < 1e-5


def test_rows_that_are_no_samples_cannot_be_gated() -> None:
    module = nn.Linear(16, 24)
    _, gate, _ = gated(module)
    with gate.over(ASSIGNMENT), pytest.raises(UnsplitError):
        module(normal(1, 5, 16))
    with torch.no_grad(), gate.over(SampleAssignment([Span((1,), 0, 7)])):
        module(normal(1, 5, 16))  # all samples have one task: any rows will do


def test_few_tokens_go_through_the_factors_and_many_through_the_weight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = nn.Linear(16, 24)  # crossing: (2 + 32) / 2 · 384 / 40 = 163 tokens
    _, gate, _ = gated(module)
    applied: list[int] = []
    plain = GatedFactors.add_

    def count(self: Any, y: torch.Tensor, x: torch.Tensor, group: Group) -> None:
        applied.append(len(x))
        plain(self, y, x, group)

    monkeypatch.setattr(GatedFactors, "add_", count)
    spans = [Span((0,), 0, 5), Span((1,), 5, 8)]
    with torch.no_grad(), gate.over(SampleAssignment(spans)):
        module(normal(1, 8, 40, 16))
    assert applied == [120], "200 tokens through the dense weight, 120 through the factors"


def test_a_copy_of_the_module_is_gated_by_itself() -> None:
    module = nn.Linear(16, 24)
    _, gate, _ = gated(module)
    twin = copy.deepcopy(module)
    x = normal(1, 7, 16)
    with torch.no_grad(), gate.over(ASSIGNMENT):
        assert torch.equal(twin(x), nn.Linear.forward(twin, x)), "its gate is another one, which is not set"
        assert not torch.equal(module(x), twin(x))


def test_other_precisions() -> None:
    module = nn.Linear(16, 24)
    plain, gate, updates = gated(module)
    x = normal(1, 7, 5, 16)
    module.to(torch.bfloat16)
    with torch.no_grad(), gate.over(ASSIGNMENT):
        found = module(x.bfloat16())
    assert found.dtype == torch.bfloat16
    for span in SPANS:
        one = wanted(plain, updates, span.members, x[span.start : span.stop])
        assert (found[span.start : span.stop].float() - one).abs().max() < 0.05 * one.abs().max()


def test_a_module_is_let_go_as_it_was() -> None:
    module, gate = torch.nn.Linear(12, 24), Gate(Recent(1 << 20))
    x, names = normal(0, 5, 12), [name for name, _ in module.named_modules()]
    plain = module(x)
    gate_module(
        gate, module, {"weight": GatedFactors(gate, "map", parts(24, 12), rule="sum", scale=1.0)}, "map"
    )
    with gate.over(SampleAssignment([Span((0,), 0, 5)])):
        assert not torch.equal(module(x), plain)
        ungate_module(module)
        assert torch.equal(module(x), plain)
    assert [name for name, _ in module.named_modules()] == names
    assert "forward" not in module.__dict__


def test_an_update_that_does_not_fit_its_parameter_is_refused() -> None:
    """A square weight that is stored transposed would take the factors of the other side, and no error."""
    gate, conv = Gate(Recent(0)), Transposed()
    factors = GatedFactors(gate, "w", parts(6, 6), rule="sum", scale=1.0)
    with pytest.raises(ValueError, match=r"c_proj.weight: its factors need transposed=True"):
        gate_module(gate, conv, {"weight": factors}, "c_proj")
    column = GatedDense(gate, "norm", {0: normal(0, 6, 1)})  # would be broadcast
    with pytest.raises(ValueError, match=r"norm.weight has the shape \[6\]; its update has \[6, 1\]"):
        gate_module(gate, nn.LayerNorm(6), {"weight": column}, "norm")
    assert "forward" not in vars(conv)
