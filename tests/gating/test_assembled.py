"""Parameters that are made of several tensors have the updates of these at their places."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from submerge.algebra import Triplets
from submerge.gating import (
    Gate,
    GatedAssembly,
    GatedDense,
    GatedFactors,
    GatedModel,
    GatedUpdate,
    Group,
    Recent,
    SampleAssignment,
    Span,
    UnsplitError,
    gate_module,
)
from submerge.gating._foreign_reads import reader_of
from submerge.names import View

SHAPES = {f"{e}.{w}": (3, 4) for e in range(2) for w in ("w1", "w3")}


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def packed(transposed: bool) -> View:
    """Return two experts' w1 and w3 [3, 4] as one parameter [2, 6, 4], or with inputs first [2, 4, 6]."""
    experts = []
    for e in range(2):
        both = View.joined([View.of(f"{e}.{w}", (3, 4)) for w in ("w1", "w3")], 0)
        experts.append((both.permute((1, 0)) if transposed else both).unsqueeze(0))
    return View.joined(experts, 0)


def pack(tensors: dict[str, torch.Tensor], transposed: bool) -> torch.Tensor:
    experts = torch.stack([torch.cat([tensors[f"{e}.w1"], tensors[f"{e}.w3"]]) for e in range(2)])
    return experts.mT.contiguous() if transposed else experts


@pytest.mark.parametrize("transposed", [False, True])
def test_updates_lie_at_their_places(transposed: bool) -> None:
    gate = Gate(Recent(1 << 20))
    dense = {0: normal(1, 3, 4), 1: normal(2, 3, 4)}
    factors = {1: Triplets(normal(3, 3, 2), torch.tensor([2.0, 1.0]), normal(4, 2, 4))}
    parts: dict[str, GatedUpdate] = {
        "0.w3": GatedDense(gate, "0.w3", dense),
        "1.w1": GatedFactors(gate, "1.w1", factors, rule="sum", scale=1.0),
    }
    update = GatedAssembly(gate, "packed", packed(transposed), {n: SHAPES[n] for n in parts}, parts)
    base = {name: normal(9, *shape) for name, shape in SHAPES.items()}
    parameter = pack(base, transposed)
    product = factors[1].left * factors[1].values @ factors[1].right
    for members in ((0,), (1,), (0, 1)):
        wanted = dict(base)
        wanted["0.w3"] = base["0.w3"] + sum(dense[k] for k in members) / len(members)
        if 1 in members:
            wanted["1.w1"] = base["1.w1"] + product
        for _ in range(2):  # computed, and taken from the cache
            found = update.dense(parameter, Group(members, 0, 1))
            torch.testing.assert_close(found, pack(wanted, transposed), rtol=1e-5, atol=1e-6)
    assert update.dense(parameter, Group((5,), 0, 1)) is parameter


class Slicing(nn.Module):
    """Reads the weight of a module inside, of which it calls another method than forward."""

    def __init__(self) -> None:
        super().__init__()
        self.sliced, self.called, self.asked = nn.Linear(4, 4), nn.Linear(4, 4), Shifted()
        self.parts, self.exact = 1, False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.parts > 1 and self.exact:
            return x @ self.called.weight
        return self.called(self.asked.shifted(x.to(self.called.weight.dtype)) @ self.sliced.weight)


class Shifted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(4))

    def shifted(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.shift

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise AssertionError("nobody calls it")


def test_what_another_module_reads_is_found() -> None:
    model = nn.ModuleDict({"inside": Slicing()})
    readers = {name: reader_of(model, *name.rsplit(".", 1)) for name, _ in model.named_parameters()}
    found = {name: reader for name, reader in readers.items() if reader is not None}
    assert found == {"inside.sliced.weight": "inside", "inside.asked.shift": "inside"}


def test_what_is_read_behind_a_setting_that_is_off_does_not_count() -> None:
    model = nn.ModuleDict({"inside": Slicing()})
    assert reader_of(model, "inside.called", "weight") is None
    model["inside"].exact = True
    assert reader_of(model, "inside.called", "weight") == "inside"


@pytest.mark.parametrize("path", ["inside.sliced", "inside.called", "inside.asked"])
def test_what_another_module_reads_is_replaced(path: str) -> None:
    model, gate = nn.ModuleDict({"inside": Slicing()}), Gate(Recent(0))
    name = "shift" if path.endswith("asked") else "weight"
    parameter = model.get_parameter(f"{path}.{name}")
    updates = {k: normal(k, *parameter.shape) for k in range(2)}
    x, wanted = normal(7, 3, 4), []
    with torch.no_grad():
        for row, k in enumerate((0, 0, 1)):
            parameter += updates[k]
            wanted.append(model["inside"](x[row : row + 1]))
            parameter -= updates[k]
        before = parameter.clone()
        gated = GatedModel(gate)
        gated.add(model, {path: {name: GatedDense(gate, name, updates)}})
        assignment = SampleAssignment((Span((0,), 0, 2), Span((1,), 2, 3)))
        found = gated.run(model["inside"], {"x": x}, assignment)
    torch.testing.assert_close(found, torch.cat(wanted), rtol=1e-5, atol=1e-5)
    assert model.get_parameter(f"{path}.{name}") is parameter
    assert torch.equal(parameter, before)
    assert not [key for key in model.state_dict() if "submerge" in key]


class Cache:
    """Has a state that a forward changes."""


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.sinks = nn.Parameter(torch.zeros(2))

    def forward(self, x: torch.Tensor, cache: Cache | None = None) -> torch.Tensor:
        return x + self.sinks.sum()


def test_what_has_a_state_is_not_cut_into_samples() -> None:
    gate, module = Gate(Recent(0)), Attention()
    gate_module(gate, module, {"sinks": GatedDense(gate, "sinks", {1: torch.ones(2)})}, "attention")
    x = torch.zeros(2, 3)
    with gate.over(SampleAssignment((Span((0,), 0, 1), Span((1,), 1, 2)))), torch.no_grad():
        assert module(x, None)[:, 0].tolist() == [0.0, 2.0]
        with pytest.raises(UnsplitError):
            module(x, cache=Cache())


class Positions(nn.Module):
    """Looks up a table of positions, or reads it where images are of another size, as CLIP does."""

    def __init__(self) -> None:
        super().__init__()
        self.position_embedding = nn.Embedding(4, 3)

    def interpolate_pos_encoding(self, x: torch.Tensor) -> torch.Tensor:
        table = self.position_embedding.weight
        return nn.functional.interpolate(table.T[None], size=x.shape[1], mode="linear")[0].T

    def forward(self, x: torch.Tensor, interpolate_pos_encoding: bool = False) -> torch.Tensor:
        if interpolate_pos_encoding:
            return x + self.interpolate_pos_encoding(x)
        return x + self.position_embedding(torch.arange(4)[None])


class AlwaysOther(Positions):
    """Reads it for images of any size."""

    def forward(self, x: torch.Tensor, interpolate_pos_encoding: bool = False) -> torch.Tensor:
        return x + self.interpolate_pos_encoding(x)


@pytest.mark.parametrize("kind", [Positions, AlwaysOther])
@pytest.mark.parametrize("length", [4, 7])
@pytest.mark.parametrize("spans", [1, 2])
def test_a_table_that_is_read_for_images_of_another_size(
    kind: type[Positions], length: int, spans: int
) -> None:
    model, gate = nn.ModuleDict({"inside": kind()}), Gate(Recent(0))
    asked = {"interpolate_pos_encoding": True} if length != 4 else {}
    path, table = "inside.position_embedding", model["inside"].position_embedding
    factors = {k: Triplets(normal(k, 4, 2), torch.tensor([2.0, 1.0]), normal(k + 5, 2, 3)) for k in range(2)}
    before, x = table.weight.detach().clone(), normal(7, spans, length, 3)
    wanted = []
    with torch.no_grad():
        for k in range(spans):
            table.weight += factors[k].left * factors[k].values @ factors[k].right
            wanted.append(model["inside"](x[k : k + 1], **asked))
            table.weight.copy_(before)
        gated = GatedModel(gate)
        update = GatedFactors(gate, path, factors, rule="sum", scale=1.0, table=True)
        gated.add(model, {path: {"weight": update}})
        assignment = SampleAssignment(tuple(Span((k,), k, k + 1) for k in range(spans)))
        for _ in range(2):
            found = gated.run(model["inside"], {"x": x, **asked}, assignment)
            torch.testing.assert_close(found, torch.cat(wanted), rtol=1e-5, atol=1e-5)
    assert gated.sequential == (kind is AlwaysOther), "a batch at the model's own size runs at once"
    assert torch.equal(table.weight, before)
