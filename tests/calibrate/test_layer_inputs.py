"""What a layer's weight multiplies: layers and their rows give one output, and others are none."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import nn

from _models import quiet_transformers
from _updates import assert_close, normal
from submerge.calibrate import LayerMoment, collect, layer_input

pytest.importorskip("transformers")
N = 6


def of_transformers(name: str, family: str, *sizes: int) -> nn.Module:
    """Return a layer of a model family, of N channels by default."""
    quiet_transformers()
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    layer: nn.Module = getattr(module, name)(*(sizes or (N,)))
    return layer


def moved(module: nn.Module) -> nn.Module:
    """Return a module with random parameters."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw))
    return module


NORMS = {
    "LayerNorm": lambda: nn.LayerNorm(N),
    "LayerNorm without bias": lambda: nn.LayerNorm(N, bias=False),
    "RMSNorm": lambda: nn.RMSNorm(N),
    "Llama": lambda: of_transformers("LlamaRMSNorm", "llama"),
    "T5": lambda: of_transformers("T5LayerNorm", "t5"),
}


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_norm_multiplies_its_normalised_input(name: str, dtype: torch.dtype) -> None:
    module = moved(NORMS[name]()).to(dtype)
    layer = layer_input(module)
    assert layer is not None
    assert layer.rows is not None
    assert (layer.kind, layer.width) == ("norm", N)
    own = dict(module.named_parameters())
    x = normal(0, 4, 5, N).to(dtype)
    found = own["weight"] * layer.rows(x) + own.get("bias", torch.zeros(N))
    assert_close(found.detach(), module(x).detach(), 1e-2 if dtype == torch.bfloat16 else 1e-5)


def test_gemma_adds_one_to_its_gain() -> None:
    module = moved(of_transformers("GemmaRMSNorm", "gemma"))
    layer = layer_input(module)
    assert layer is not None
    assert layer.rows is not None
    x = normal(0, 4, N).float()
    found = (1 + module.get_parameter("weight")) * layer.rows(x)
    assert_close(found.detach(), module(x).detach(), 1e-5)


CONVOLUTIONS = {
    "1d": (lambda: nn.Conv1d(3, 4, 3, stride=2, padding=1), (2, 3, 9)),
    "2d": (lambda: nn.Conv2d(3, 4, (2, 3), stride=(2, 1), padding=(0, 1)), (2, 3, 8, 7)),
    "3d": (lambda: nn.Conv3d(2, 4, (2, 2, 2), stride=2), (2, 2, 4, 6, 4)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_is_linear_in_its_patches(name: str) -> None:
    make, shape = CONVOLUTIONS[name]
    module = moved(make())
    layer = layer_input(module)
    assert layer is not None
    assert layer.rows is not None
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    rows = layer.rows(x)
    assert rows.shape[-1] == layer.width
    weight, bias = module.get_parameter("weight"), module.get_parameter("bias")
    found = rows @ weight.flatten(1).T + bias  # [B, positions, m]
    assert_close(found.detach(), module(x).flatten(2).mT.detach(), 1e-5)


class Gated(nn.Module):
    """Has a gain, and normalises more than its first input."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(N))

    def forward(self, x: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
        return self.weight * torch.nn.functional.normalize(x if gate is None else x * gate, dim=-1)


class Rescaled(Gated):
    """Is not linear in its parameter."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return self.weight.exp() * x


OTHERS: dict[str, Any] = {
    "activation": nn.ReLU,
    "PReLU": lambda: nn.PReLU(N),
    "BatchNorm": lambda: nn.BatchNorm1d(3).eval(),
    "GroupNorm": lambda: nn.GroupNorm(2, N),
    "with a gate": Gated,
    "not linear": Rescaled,
    "groups": lambda: nn.Conv2d(4, 4, 3, groups=2),
    "dilation": lambda: nn.Conv2d(4, 4, 3, dilation=2),
    "same": lambda: nn.Conv2d(4, 4, 3, padding="same"),
    "offsets": lambda: of_transformers("OPTLearnedPositionalEmbedding", "opt", 8, N),
    "attention": lambda: nn.MultiheadAttention(8, 2),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_modules_are_none(name: str) -> None:
    assert layer_input(OTHERS[name]()) is None


class Positions(nn.Module):
    """Looks up tokens, and positions that are one tensor for all inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(8, N), nn.Embedding(4, N)
        self.heads = nn.LayerNorm(N // 2)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        at = torch.arange(input_ids.shape[1]).unsqueeze(0)
        x = self.tokens(input_ids) + self.positions(at)
        y: torch.Tensor = self.heads(x.view(*x.shape[:2], 2, -1))
        return y


def test_padding_does_not_count() -> None:
    model = moved(Positions())
    ids = torch.tensor([[3, 3, 5, 0], [7, 0, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
    reducers = {}
    for name in ("tokens", "positions", "heads"):
        layer = layer_input(model.get_submodule(name))
        assert layer is not None
        reducers[name] = LayerMoment(layer, "full", joint=name == "heads")
    with torch.no_grad():
        collect(model, [{"input_ids": ids, "attention_mask": mask}], reducers)
    ones = torch.ones(1, 8)
    assert reducers["tokens"].moment.times(ones).tolist() == [[0, 0, 0, 2, 0, 1, 0, 1]]
    assert reducers["positions"].moment.times(ones[:, :4]).tolist() == [[2, 1, 1, 0]]
    assert (reducers["tokens"].moment.count, reducers["heads"].moment.count) == (4, 8)  # of two heads
