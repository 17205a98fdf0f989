"""Constant scales that are learned: gradients are those of finite differences, and of explicit weights."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call

from _gated import dense, gate_maps, normal, triplets
from _models import TEXT, quiet_transformers
from submerge.gating import (
    ConstantAssignment,
    Gate,
    GatedDense,
    GatedFactors,
    GatedSum,
    GatedTable,
    GatedUpdate,
    Recent,
    gate_module,
)

DOUBLE = torch.float64


class Conv1D(nn.Module):
    """A linear map that is stored as [in, out], as in GPT-2."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(normal(90, 16, 24)), nn.Parameter(normal(91, 24))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight + self.bias


KINDS: dict[str, Any] = {
    "linear": (lambda: nn.Linear(16, 24), normal(1, 3, 5, 16, dtype=DOUBLE)),
    "linear, many tokens": (lambda: nn.Linear(16, 24), normal(1, 3, 200, 16, dtype=DOUBLE)),
    "transposed": (Conv1D, normal(1, 3, 5, 16, dtype=DOUBLE)),
    "embedding": (lambda: nn.Embedding(16, 24), torch.arange(15).view(3, 5)),
    "layer norm": (lambda: nn.LayerNorm(16), normal(1, 3, 5, 16, dtype=DOUBLE)),
    "convolution": (lambda: nn.Conv2d(3, 8, 2, 2), normal(1, 3, 3, 4, 4, dtype=DOUBLE)),
}


def gated(kind: str) -> tuple[nn.Module, Gate, dict[str, list[torch.Tensor]]]:
    """Return a module gated in all its parameters, in float64, and the updates of three members by name."""
    gate, module = Gate(Recent(1 << 20)), KINDS[kind][0]().double()
    updates: dict[str, GatedUpdate] = {}
    explicit = {}
    for name, parameter in module.named_parameters():
        if parameter.ndim == 2:
            parts = triplets(*parameter.shape, 3, dtype=DOUBLE)
            explicit[name] = [dense(parts, k) for k in range(3)]
            if kind == "embedding":
                updates[name] = GatedTable(gate, name, parts, count=3, rule="sum", scale=1.0, table=True)
                continue
            transposed = kind == "transposed"
            updates[name] = GatedFactors(gate, name, parts, rule="tsv_m", scale=1.0, transposed=transposed)
        else:
            own = {k: normal(50 + k, *parameter.shape, dtype=DOUBLE) for k in range(3)}
            explicit[name] = list(own.values())
            updates[name] = GatedDense(gate, name, own)
    gate_module(gate, module.requires_grad_(False), updates, "map")
    return module, gate, explicit


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_finite_differences(kind: str) -> None:
    module, gate, explicit = gated(kind)
    x = KINDS[kind][1]
    weights = normal(7, *module(x).shape, dtype=DOUBLE)

    def loss(scales: torch.Tensor) -> torch.Tensor:
        with gate.over(ConstantAssignment(scales)):
            return (module(x).sin() * weights).sum()

    scales = torch.tensor([0.3, -0.2, 0.7], dtype=DOUBLE, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (scales,))
    values = {
        name: parameter + sum(s * d for s, d in zip(scales, explicit[name], strict=True))
        for name, parameter in module.named_parameters()
    }
    wanted = functional_call(copy.deepcopy(module), values, (x,))
    with gate.over(ConstantAssignment(scales)):
        found = module(x)
    assert (found - wanted).abs().max() < 1e-10
    assert not gate.cache, "nothing that depends on the scales is stored"


@pytest.mark.parametrize("kind", KINDS)
def test_rank_one_units_have_scales_of_their_own(kind: str) -> None:
    """Those of member 0 are its scale, twice; a dense update takes the mean, and member 1 does not act."""
    module, gate, explicit = gated(kind)
    x = KINDS[kind][1]
    weights = normal(7, *module(x).shape, dtype=DOUBLE)

    def output(scales: Any) -> Any:
        with gate.over(ConstantAssignment(scales)):
            return module(x)

    def loss(first: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        return (output({"map": {2: last, 0: first}}).sin() * weights).sum()

    equal = {"map": {0: torch.full((2,), 0.3, dtype=DOUBLE), 2: torch.full((2,), 0.7, dtype=DOUBLE)}}
    assert (output(equal) - output(torch.tensor([0.3, 0.0, 0.7], dtype=DOUBLE))).abs().max() < 1e-12
    units = [normal(k, 2, dtype=DOUBLE).requires_grad_() for k in range(2)]
    assert torch.autograd.gradcheck(loss, units)
    values = {
        name: parameter + sum(unit_update(explicit[name][k], u) for k, u in zip((0, 2), units, strict=True))
        for name, parameter in module.named_parameters()
    }
    wanted = functional_call(copy.deepcopy(module), values, (x,))
    assert (output({"map": dict(zip((0, 2), units, strict=True))}) - wanted).abs().max() < 1e-10
    assert not gate.cache, "nothing that depends on the scales is stored"


def unit_update(update: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Return an update whose singular triplets are scaled, or one without factors by the mean."""
    if update.ndim != 2:
        return scales.mean() * update
    u, s, vh = torch.linalg.svd(update, full_matrices=False)
    return (u[:, :2] * s[:2] * scales) @ vh[:2]


def test_factors_and_dense_updates_of_one_parameter_are_added() -> None:
    gate, module = Gate(Recent(1 << 20)), nn.Linear(16, 24).double().requires_grad_(False)
    parts, own = triplets(24, 16, 3, dtype=DOUBLE), {1: normal(50, 24, 16, dtype=DOUBLE)}
    terms = [GatedFactors(gate, "w", parts, rule="sum", scale=1.0), GatedDense(gate, "w", own)]
    gate_module(gate, module, {"weight": GatedSum(gate, "w", terms)}, "map")
    x, scales = normal(1, 3, 5, 16, dtype=DOUBLE), torch.tensor([0.3, -0.2, 0.7], dtype=DOUBLE)
    with gate.over(ConstantAssignment(scales)):
        found = module(x)
    weight = module.weight + sum(s * dense(parts, k) for k, s in enumerate(scales)) - 0.2 * own[1]
    assert (found - nn.functional.linear(x, weight, module.bias)).abs().max() < 1e-12


def test_scales_of_each_module_of_a_causal_lm() -> None:
    """A padded batch through a real model: one scale a module and member, and what is not named stays."""
    pytest.importorskip("transformers")
    t = quiet_transformers()
    torch.manual_seed(0)
    config = t.GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2, n_positions=32)
    model = t.GPT2LMHeadModel(config).double().eval().requires_grad_(False)
    plain, gate = copy.deepcopy(model), Gate(Recent(1 << 20))
    _, updates = gate_maps(model, gate, count=2)
    names = sorted(updates)[:3]
    ids = torch.randint(5, 60, (2, 6), generator=torch.Generator().manual_seed(1))
    inputs = {"input_ids": ids, "attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])}
    values = normal(3, len(names), 2, dtype=DOUBLE).requires_grad_()

    def loss(scales: torch.Tensor) -> torch.Tensor:
        by_name = dict(zip(names, scales, strict=True))
        with gate.over(ConstantAssignment(by_name)):
            total: torch.Tensor = model(**inputs).logits[:, -1].logsumexp(-1).sum()
        return total

    assert torch.autograd.gradcheck(loss, (values,))
    merged = {
        f"{name}.weight": plain.get_submodule(name).weight
        + sum(s * dense(updates[name], k) for k, s in enumerate(row))
        for name, row in zip(names, values.detach(), strict=True)
    }
    with torch.no_grad(), gate.over(ConstantAssignment(dict(zip(names, values, strict=True)))):
        found = model(**inputs).logits
    wanted = functional_call(plain, merged, (), inputs).logits
    assert (found - wanted).abs().max() < 1e-10


def test_constant_scales_generate_as_the_merged_model_does() -> None:
    """Beam search over a cache, a batch padded on the left."""
    pytest.importorskip("transformers")
    t = quiet_transformers()
    torch.manual_seed(0)
    model = t.LlamaForCausalLM(t.LlamaConfig(**{**TEXT, "hidden_size": 32}, pad_token_id=0)).eval()
    plain, gate = copy.deepcopy(model), Gate(Recent(1 << 20))
    _, updates = gate_maps(model, gate, count=2)
    scales = torch.tensor([0.8, -0.4])
    with torch.no_grad():
        for name, parts in updates.items():
            plain.get_submodule(name).weight.add_(0.8 * dense(parts, 0) - 0.4 * dense(parts, 1))
    ids = torch.randint(5, 60, (2, 6), generator=torch.Generator().manual_seed(1))
    inputs = {"input_ids": ids, "attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])}
    how = {"max_new_tokens": 5, "num_beams": 3, "do_sample": False}
    with gate.over(ConstantAssignment(scales)):
        found = model.generate(**inputs, **how)
    assert torch.equal(found, plain.generate(**inputs, **how))
