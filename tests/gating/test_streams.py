"""Modules by token against the same module with parameters of its own for every row, in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import nn

from _gated import dense, normal, triplets
from _models import quiet_transformers
from submerge.algebra import Triplets
from submerge.gating import (
    Gate,
    GatedFactors,
    GatedRows,
    GatedUpdate,
    GatedValues,
    Recent,
    TokenAssignment,
    UnsplitError,
    gate_module,
)

M, N = 24, 16
BASE = 3
"""The member whose update is −ΔW."""
STREAMS = ((0, BASE), (1, BASE), (2, BASE))
TOGETHER = torch.tensor([[0, 1, 1, 2, 2, 0, 3, 0], [0, 0, 0, 0, 0, 1, 1, 1]])
MIXED = torch.tensor([[1, 0, 1, 2, 0, 2, 3, 1], [0, 3, 0, 0, 1, 0, 2, 2], [0] * 8])
LONG = torch.randint(0, 4, (2, 900), generator=torch.Generator().manual_seed(3))


def wide(seed: int, *shape: int) -> torch.Tensor:
    return normal(seed, *shape, dtype=torch.float64)


def updates_of(gate: Gate, kind: str, transposed: bool = False) -> tuple[GatedUpdate, dict[int, Any]]:
    """Return an update of a weight, and W_k of each stream as a function of W."""
    m, n = (N, M) if transposed else (M, N)
    parts = triplets(m, n, 4, dtype=torch.float64)
    del parts[2]  # the third stream's tokens run with the base's values
    update = {k: dense(parts, k) for k in parts} | {2: torch.zeros(m, n, dtype=torch.float64)}
    base, own = wide(70, m, n), wide(71, m, n)
    settings: dict[str, Any] = {"rule": "sum", "scale": 1.0, "transposed": transposed}
    if kind in ("base and factors", "values and factors of a base"):
        del parts[BASE]
    factors = GatedFactors(gate, "w", parts, **settings)
    explicit: dict[int, Callable[[torch.Tensor], torch.Tensor]] = {
        k: lambda w, k=k: w + update[k] + update[BASE] for k in range(3)
    }
    if kind == "factors":
        return factors, explicit
    if kind == "base and factors":
        factors.base = base
        return factors, {k: lambda w, k=k: base + update[k] for k in range(3)}
    if kind == "values":
        both = GatedValues(gate, "w", {0: own, 2: own})
        return both, {0: lambda w: own, 1: lambda w: w, 2: lambda w: own}
    if kind == "values and a base":
        both = GatedValues(gate, "w", {0: own})
        both.base = base
        return both, {0: lambda w: own, 1: lambda w: base, 2: lambda w: base}
    if kind == "values and factors":
        return GatedValues(gate, "w", {0: own}, factors), explicit | {0: lambda w: own}
    assert kind == "values and factors of a base"
    factors.base = base
    return GatedValues(gate, "w", {0: own}, factors), {
        0: lambda w: own,
        1: lambda w: base + update[1],
        2: lambda w: base,
    }


WEIGHTS = (
    "factors",
    "base and factors",
    "values",
    "values and a base",
    "values and factors",
    "values and factors of a base",
)


class Transposed(nn.Module):
    """A linear map that is stored as [in, out], as in GPT-2."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(wide(90, N, M))
        self.bias: nn.Parameter | None = nn.Parameter(wide(91, M))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x @ self.weight
        return y if self.bias is None else y + self.bias


Transposed.__name__ = "Conv1D"


def explicit_rows(
    plain: nn.Module, values: Mapping[str, Mapping[int, Any]], labels: torch.Tensor, x: torch.Tensor
) -> torch.Tensor:
    """Return the outputs of rows [N, n], each of a copy with the parameters of its label."""
    copies = {0: plain}
    for label in range(1, 4):
        copies[label] = copy.deepcopy(plain)
        for name, of_member in values.items():
            parameter = getattr(copies[label], name)
            parameter.data = of_member[label - 1](parameter.data)
    return torch.stack([copies[int(k)](row) for k, row in zip(labels, x, strict=True)])


@torch.no_grad()
@pytest.mark.parametrize("labels", [TOGETHER, MIXED, LONG], ids=["together", "mixed", "long"])
@pytest.mark.parametrize("bias", ["none", "resident", "values"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("kind", WEIGHTS)
def test_a_linear_map(kind: str, transposed: bool, bias: str, labels: torch.Tensor) -> None:
    gate = Gate(Recent(1 << 20))
    module: nn.Module = Transposed() if transposed else nn.Linear(N, M, bias=True, dtype=torch.float64)
    update, values = updates_of(gate, kind, transposed)
    updates, of_name = {"weight": update}, {"weight": values}
    if bias == "none":
        module.bias = None
    if bias == "values":
        own = wide(72, M)
        updates["bias"] = GatedValues(gate, "b", {1: own})
        of_name["bias"] = {0: lambda b: b, 1: lambda b: own, 2: lambda b: b}
    plain = copy.deepcopy(module)
    gate_module(gate, module, updates, "map")
    x = wide(9, *labels.shape, N)
    want = explicit_rows(plain, of_name, labels.flatten(), x.flatten(0, 1)).view(*labels.shape, M)
    with gate.over(TokenAssignment(labels, STREAMS)):
        assert (module(x) - want).abs().max() < 1e-12
        assert (module(x.flatten(0, 1)) - want.flatten(0, 1)).abs().max() < 1e-12
        beams = module(x.repeat_interleave(3, dim=0))
        assert (beams - want.repeat_interleave(3, dim=0)).abs().max() < 1e-12
        odd = x.transpose(0, 1).contiguous().transpose(0, 1)
        assert (module(odd) - want).abs().max() < 1e-12, "rows that do not lie one after the other"
        assert torch.equal(module(x[:, -1:]), plain(x[:, -1:])), "a decoding step is text"
    with gate.over(TokenAssignment(torch.zeros_like(labels), STREAMS)):
        assert torch.equal(module(x), plain(x))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_text_is_the_plain_module_s_to_the_bit_beside_factors(dtype: torch.dtype) -> None:
    gate, module = Gate(Recent(1 << 20)), nn.Linear(N, M, dtype=torch.float64)
    gate_module(gate, module, {"weight": updates_of(gate, "factors")[0]}, "map")
    module.to(dtype)
    x = normal(9, *MIXED.shape, N).to(dtype)
    with gate.over(TokenAssignment(MIXED, STREAMS)):
        y = module(x)
    text = MIXED == 0
    assert torch.equal(y[text], module(x)[text])
    assert not torch.equal(y[~text], module(x)[~text])


class Norm(nn.Module):
    """A root mean square norm with 1 + w, as Gemma's."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(n, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * (1 + self.weight)


NORMS: Mapping[str, Callable[[], nn.Module]] = {
    "layer norm": lambda: nn.LayerNorm(N, dtype=torch.float64),
    "without bias": lambda: nn.LayerNorm(N, bias=False, dtype=torch.float64),
    "torch": lambda: nn.RMSNorm(N, dtype=torch.float64),
    "own class": lambda: Norm(N),
}


@torch.no_grad()
@pytest.mark.parametrize("heads", [(), (5,)])
@pytest.mark.parametrize("labels", [TOGETHER, MIXED], ids=["together", "mixed"])
@pytest.mark.parametrize("kind", NORMS)
def test_a_norm(kind: str, labels: torch.Tensor, heads: tuple[int, ...]) -> None:
    """Also one that norms each head of each position."""
    gate, module = Gate(Recent(0)), NORMS[kind]()
    plain = copy.deepcopy(module)
    updates, of_name = {}, {}
    for number, (name, parameter) in enumerate(plain.named_parameters()):
        one, other = wide(number, N), wide(9 + number, N)
        update = updates[name] = GatedValues(gate, name, {0: one})
        update.base = other
        of_name[name] = {0: lambda w, one=one: one, 1: lambda w, other=other: other}
        of_name[name][2] = of_name[name][1]
        assert parameter.shape == one.shape
    gate_module(gate, module, updates, "norm")
    x = wide(9, *labels.shape, *heads, N)
    rows = labels.flatten().repeat_interleave(*heads) if heads else labels.flatten()
    want = explicit_rows(plain, of_name, rows, x.reshape(-1, N)).view(x.shape)
    with gate.over(TokenAssignment(labels, STREAMS)):
        assert (module(x) - want).abs().max() < 1e-12
        assert torch.equal(module(x[:, :1]), plain(x[:, :1]))
    assert torch.equal(module(x), plain(x))


def test_norms_of_transformers_are_row_wise() -> None:
    pytest.importorskip("transformers")
    quiet_transformers()
    from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
    from transformers.models.llama.modeling_llama import LlamaRMSNorm
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

    for kind in (LlamaRMSNorm, Qwen3RMSNorm, Gemma2RMSNorm):
        gate, module = Gate(Recent(0)), kind(N)
        gated = gate_module(gate, module, {"weight": GatedValues(gate, "w", {0: normal(1, N)})}, "norm")
        assert isinstance(gated, GatedRows)


class Mixes(nn.Module):
    """What is no map of rows: it has a vector as its parameter, and returns one row for all."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(N))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * self.weight).sum(0, keepdim=True)


@pytest.mark.parametrize(
    ("module", "x"),
    [
        (nn.GroupNorm(2, 8), torch.ones(3, 8, 8)),
        (nn.BatchNorm1d(8), torch.ones(3, 8, 8)),
        (nn.Embedding(8, 8), torch.ones(3, 8, dtype=torch.long)),
        (nn.Conv1d(8, 8, 3), torch.ones(3, 8, 8)),
        (nn.PReLU(8), torch.ones(3, 8, 4)),
        (Mixes(), torch.ones(3, 8, N)),
    ],
    ids=lambda one: type(one).__name__,
)
def test_other_modules_do_not_tell_streams_apart(module: nn.Module, x: torch.Tensor) -> None:
    gate, weight = Gate(Recent(0)), module.weight
    assert isinstance(weight, torch.Tensor)
    gate_module(gate, module, {"weight": GatedValues(gate, "w", {0: weight.detach() + 1})}, "other")
    with gate.over(TokenAssignment(MIXED)), pytest.raises(UnsplitError):
        module(x)


def test_values_are_not_copied_and_move_once() -> None:
    gate, own = Gate(Recent(0)), normal(1, N)
    update = GatedValues(gate, "w", {0: own, 3: own, 4: normal(2, N)})
    assert len(list(update.buffers())) == 2
    assert next(update.buffers()) is own
    assert not update.state_dict()
    update.double()
    assert [buffer.dtype for buffer in update.buffers()] == [torch.float64] * 2
    twin = copy.deepcopy(update)
    assert len(list(twin.buffers())) == 2
    assert next(twin.buffers()) is not next(update.buffers())


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("labels", [TOGETHER, MIXED], ids=["together", "mixed"])
def test_gradients_are_those_of_explicit_rows(kind: str, labels: torch.Tensor) -> None:
    gate, module = Gate(Recent(1 << 20)), nn.Linear(N, M, dtype=torch.float64)
    update, values = updates_of(gate, kind)
    plain = copy.deepcopy(module)
    gate_module(gate, module, {"weight": update}, "map")
    x = wide(9, *labels.shape, N).requires_grad_()
    y = wide(8, *labels.shape, M)
    with gate.over(TokenAssignment(labels, STREAMS)):
        (found,) = torch.autograd.grad((module(x) * y).sum(), x)
    rows = explicit_rows(plain, {"weight": values}, labels.flatten(), x.flatten(0, 1))
    (want,) = torch.autograd.grad((rows * y.flatten(0, 1)).sum(), x)
    assert (found - want).abs().max() < 1e-12


@torch.no_grad()
@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("autocast", [False, True])
def test_other_precisions(kind: str, autocast: bool) -> None:
    gate, module = Gate(Recent(1 << 20)), nn.Linear(N, M, dtype=torch.float64)
    update, values = updates_of(gate, kind)
    plain = copy.deepcopy(module)
    gate_module(gate, module, {"weight": update}, "map")
    module.to(torch.float32 if autocast else torch.bfloat16)
    x = wide(9, *MIXED.shape, N)
    want = explicit_rows(plain, {"weight": values}, MIXED.flatten(), x.flatten(0, 1))
    with gate.over(TokenAssignment(MIXED, STREAMS)), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = module(x.float() if autocast else x.bfloat16())
    assert found.dtype == torch.bfloat16
    assert (found.double().flatten(0, 1) - want).abs().max() < 0.03 * want.abs().max()


def test_a_copy_of_the_module_has_streams_of_its_own() -> None:
    gate, module = Gate(Recent(0)), nn.Linear(N, M, dtype=torch.float64)
    gate_module(gate, module, {"weight": updates_of(gate, "values and factors")[0]}, "map")
    twin = copy.deepcopy(module)
    x = wide(9, *MIXED.shape, N)
    with torch.no_grad(), gate.over(TokenAssignment(MIXED, STREAMS)):
        assert torch.equal(twin(x), nn.Linear.forward(twin, x)), "its gate is another one, which is not set"
        y = module(x)
        with twin.submerge.gate.over(TokenAssignment(MIXED, STREAMS)):  # type: ignore[union-attr, operator]
            assert torch.equal(twin(x), y)


def test_streams_are_those_of_a_set_of_factors() -> None:
    """(n, K) is Δ_n − ΔW: the folder's checkpoint is W_0 + ΔW, and the stream runs with W_0 + Δ_n."""
    parts = triplets(M, N, 2, dtype=torch.float64)
    base, merged = wide(1, M, N), dense(parts, 1)
    minus = Triplets(-parts[1].left, parts[1].values, parts[1].right)
    gate, module = Gate(Recent(0)), nn.Linear(N, M, bias=False, dtype=torch.float64)
    module.weight.data = base + merged
    update = GatedFactors(gate, "w", {0: parts[0], 1: minus}, rule="sum", scale=1.0)
    gate_module(gate, module, {"weight": update}, "map")
    x = wide(2, 1, 4, N)
    with torch.no_grad(), gate.over(TokenAssignment(torch.tensor([[0, 1, 0, 1]]), [(0, 1)])):
        y = module(x)
    assert (y[:, 1::2] - x[:, 1::2] @ (base + dense(parts, 0)).T).abs().max() < 1e-12
    assert (y[:, ::2] - x[:, ::2] @ (base + merged).T).abs().max() < 1e-12
