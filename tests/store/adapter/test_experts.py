"""Adapters of experts, which one version of PEFT stores otherwise than another."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from store.helpers_adapter import (
    CASES,
    applied,
    by_hand,
    make,
    refused,
    same,
    unfit,
)
from submerge.store import (
    Adapter,
    LowRankPart,
    fit_adapter,
    open_adapter,
)


def test_experts_apart(tmp_path: Path) -> None:
    """A base that keeps each expert in tensors of its own gets a part for each of them."""
    made = make("mixtral", tmp_path, **CASES["mixtral"][1])
    apart: dict[str, torch.Tensor] = {}
    merged: dict[str, torch.Tensor] = {}
    for source, target in ((made.base, apart), (made.merged, merged)):
        for name, tensor in source.items():
            head, packed, last = name.rpartition(".mlp.experts.")
            name = name.replace(".mlp.gate.", ".block_sparse_moe.gate.")
            if not packed:
                target[name] = tensor
                continue
            for expert, matrix in enumerate(tensor):
                pieces = (
                    {"w2": matrix}
                    if last == "down_proj"
                    else dict(zip(("w1", "w3"), matrix.chunk(2), strict=True))
                )
                for leaf, piece in pieces.items():
                    target[f"{head}.block_sparse_moe.experts.{expert}.{leaf}.weight"] = piece
    adapter = open_adapter(str(tmp_path))
    same(applied(apart, fit_adapter(adapter, {n: tuple(t.shape) for n, t in apart.items()})), merged)


@pytest.mark.parametrize("layout", ["apart", "packed"])
@pytest.mark.parametrize("adapted", [("gate_up_proj", "down_proj"), ("gate_up_proj",), ("down_proj",)])
@pytest.mark.parametrize("inner", [8, 12, 16])
def test_experts_of_older_versions(tmp_path: Path, inner: int, adapted: tuple[str, ...], layout: str) -> None:
    """Up to PEFT 0.18, A acts on an expert's outputs: shapes tell it, and where they do not the version."""
    hidden, experts, rank = 16, 3, 2
    sizes = {"gate_up_proj": (2 * inner, hidden), "down_proj": (hidden, inner)}
    draw = torch.Generator().manual_seed(0)
    factors, wanted, base = {}, {}, {}
    for depth, leaf in enumerate(reversed(adapted)):
        out, into = sizes[leaf]
        a = torch.randn(experts * rank, out, generator=draw)
        b = torch.randn(into, rank * experts, generator=draw)
        module = "m.layers.0.mlp.experts" + ".base_layer" * depth
        factors |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
        stacked = (a.view(experts, rank, out), b.view(into, rank, experts))
        wanted[leaf] = 2 * torch.einsum("ero,ire->eoi", *stacked)  # the scale is 4 / 2
    for leaf, (out, into) in sizes.items():
        update = wanted.get(leaf, torch.zeros(experts, out, into))
        if layout == "packed":
            base[f"m.layers.0.mlp.experts.{leaf}"] = update
            continue
        for expert, matrix in enumerate(update):
            pieces = [matrix] if leaf == "down_proj" else matrix.chunk(2)
            names = ["down_proj"] if leaf == "down_proj" else ["gate_proj", "up_proj"]
            for name, piece in zip(names, pieces, strict=True):
                base[f"m.layers.0.mlp.experts.{expert}.{name}.weight"] = piece
    targets = [f"mlp.experts.{leaf}" for leaf in adapted]
    tensors = {"q.lora_A.weight": torch.ones(()), "q.lora_B.weight": torch.ones(()), **factors}
    square = {leaf for leaf in adapted if len(set(sizes[leaf])) == 1}
    versions = ["0.18.1"] if square == set(adapted) else ["0.18.1", None, "0.21.2"]  # shapes go first
    for version in versions:
        folder = by_hand(tmp_path, tensors, target_parameters=targets, peft_version=version)
        shapes = {name: tuple(tensor.shape) for name, tensor in base.items()}
        adapter = fit_adapter(open_adapter(str(folder)), shapes)
        found = applied({name: torch.zeros_like(tensor) for name, tensor in base.items()}, adapter)
        same(found, base)
    if square == set(adapted):
        folder = by_hand(tmp_path, tensors, target_parameters=targets)
        assert "peft_version" in unfit(open_adapter(str(folder)), shapes)


def test_single_experts_of_a_packed_base(tmp_path: Path) -> None:
    """Adapters of transformers 4 have factors for each expert, which transformers 5 packs."""
    draw = torch.Generator().manual_seed(0)
    head, hidden, inner, experts = "model.layers.1.mlp.experts", 6, 4, 3
    base = {
        f"{head}.gate_up_proj": torch.randn(experts, 2 * inner, hidden, generator=draw),
        f"{head}.down_proj": torch.randn(experts, hidden, inner, generator=draw),
    }
    merged, tensors = {name: tensor.clone() for name, tensor in base.items()}, {}
    # not all experts are adapted, nor all matrices of one
    adapted = [(0, "w1", 2), (0, "w3", 2), (2, "w1", 3), (1, "w3", 2), (2, "w2", 2)]
    for expert, leaf, rank in adapted:
        rows, columns = (hidden, inner) if leaf == "w2" else (inner, hidden)
        a, b = torch.randn(rank, columns, generator=draw), torch.randn(rows, rank, generator=draw)
        own = f"model.layers.1.block_sparse_moe.experts.{expert}.{leaf}"
        tensors |= {f"{own}.lora_A.weight": a, f"{own}.lora_B.weight": b}
        packed = merged[f"{head}.{'down_proj' if leaf == 'w2' else 'gate_up_proj'}"]
        top = inner if leaf == "w3" else 0
        packed[expert, top : top + rows] += 4 / rank * b @ a
    nothing = {f"q.lora_{side}.weight": torch.ones(()) for side in "AB"}
    folder = by_hand(tmp_path, nothing | tensors, rank_pattern={"experts.2.w1": 3})
    adapter = fit_adapter(open_adapter(str(folder)), {n: tuple(t.shape) for n, t in base.items()})
    assert {name: part.shape for name, part in adapter.parts.items()} == {
        name: tuple(tensor.shape) for name, tensor in base.items()
    }
    assert len(adapter.scales) == len(adapted)
    same(applied(base, adapter), merged)
    text = unfit(
        open_adapter(str(folder)), {f"{head}.gate_up_proj": (3, 6, 8), f"{head}.down_proj": (2, 6, 4)}
    )
    assert "w1.weight" in text
    assert "but the base packs experts as [3, 6, 8]" in text
    assert "but the base packs experts as [2, 6, 4]" in text


def test_single_experts_of_one_of_two_stacks(tmp_path: Path) -> None:
    """Both stacks of a model that speaks have a layer 0, of other sizes."""
    own = "thinker.model.layers.0.mlp.experts.1.down_proj"
    nothing = {f"q.lora_{side}.weight": torch.ones(()) for side in "AB"}
    factors = {f"{own}.lora_A.weight": torch.ones(2, 4), f"{own}.lora_B.weight": torch.ones(6, 2)}
    adapter = open_adapter(str(by_hand(tmp_path, nothing | factors)))
    shapes = {
        f"{stack}.model.layers.0.mlp.experts.down_proj": (3, 6, size)
        for stack, size in (("thinker", 4), ("talker", 5))
    }
    assert fit_adapter(adapter, shapes).parts.keys() == {"thinker.model.layers.0.mlp.experts.down_proj"}


@pytest.mark.parametrize("inner", [3, 6])
def test_lists_of_experts_maps(inner: int, tmp_path: Path) -> None:
    """Copies of gpt-oss in 4 bits have a linear map for each expert, and packed parameters are transposed."""
    draw = torch.Generator().manual_seed(0)
    head, hidden = "model.layers.0.mlp.experts", 6
    sizes = {"gate_up_proj": (hidden, 2 * inner), "down_proj": (inner, hidden)}
    base = {f"{head}.{leaf}": torch.randn(2, *size, generator=draw) for leaf, size in sizes.items()}
    merged, tensors = {name: tensor.clone() for name, tensor in base.items()}, {}
    for leaf, (inputs, outputs) in sizes.items():
        for expert in range(2):
            a, b = torch.randn(2, inputs, generator=draw), torch.randn(outputs, 2, generator=draw)
            own = f"{head}.{leaf}s.{expert}"
            tensors |= {f"{own}.lora_A.weight": a, f"{own}.lora_B.weight": b}
            merged[f"{head}.{leaf}"][expert] += 2 * (b @ a).T
    nothing = {f"q.lora_{side}.weight": torch.ones(()) for side in "AB"}
    adapter = open_adapter(str(by_hand(tmp_path, nothing | tensors)))
    same(applied(base, fit_adapter(adapter, {n: tuple(t.shape) for n, t in base.items()})), merged)


def test_parameters_of_unknown_order_are_refused(tmp_path: Path) -> None:
    pair = {f"x.{deep}lora_{f}.weight": torch.ones(2, 2) for deep in ("", "base_layer.") for f in "AB"}
    text = refused(by_hand(tmp_path, pair, target_parameters=["x.one", "x.two"]))
    assert "which factors of x belong to which of one, two" in text
    text = refused(by_hand(tmp_path, pair, target_parameters=["x.one", "x.two", "x.three"]))
    assert "holds factors for 2 parameters of x" in text


def test_square_experts_without_a_hint_are_refused(tmp_path: Path) -> None:
    pair = {"x.lora_A.weight": torch.ones(6, 4), "x.lora_B.weight": torch.ones(4, 6)}

    def adapter_of(version: str | None) -> Adapter:
        folder = by_hand(tmp_path, pair, target_parameters=["x.down_proj"], peft_version=version)
        return open_adapter(str(folder))

    adapter = adapter_of(None)
    part = adapter.parts["x.down_proj"]
    assert isinstance(part, LowRankPart)
    assert (part.shape, part.stored, part.experts, part.rank) == (None, (3, 4, 4), 3, 2)
    shapes = {"q.weight": (3, 4), "x.down_proj": (3, 4, 4)}
    assert "which factor acts on which side of an expert" in unfit(adapter, shapes)
    outputs_first, inputs_first = ({**shapes, "x.gate_up_proj": shape} for shape in ((3, 8, 4), (3, 4, 8)))
    assert "peft_version" in unfit(adapter, outputs_first)
    assert "peft_version" in unfit(adapter_of("0.19.1.dev0"), outputs_first)
    wanted = {
        "0.17.1": (True, True),
        "0.18.1": (True, True),
        "0.19.0": (True, False),
        "0.19.1": (False, True),
    }
    for version, turned in wanted.items():
        for base, expected in zip((outputs_first, inputs_first), turned, strict=True):
            found = fit_adapter(adapter_of(version), base).parts["x.down_proj"]
            assert isinstance(found, LowRankPart)
            assert found.transposed is expected, (version, base)
