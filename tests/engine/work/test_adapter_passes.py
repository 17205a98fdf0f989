"""One tensor into an adapter that notes what it gets."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engine.work.helpers_work import reader_of, space
from submerge.engine import TensorPlan
from submerge.engine.plan.tensors._tensor import Module
from submerge.engine.work import ChunkReader, ModuleTarget, RangeRecord, adapter_passes, run_passes
from submerge.recipe import OutputForm

SUM = {"weight": [0.5, 0.25]}


class Noting:
    def __init__(self) -> None:
        self.factors: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.values: list[torch.Tensor] = []

    def add_factors(self, plan: TensorPlan, left: torch.Tensor, right: torch.Tensor) -> None:
        self.factors.append((left, right))

    def save_values(self, plan: TensorPlan, values: torch.Tensor) -> None:
        self.values.append(values)


def run(reader: ChunkReader, **form: Any) -> tuple[Noting, RangeRecord]:
    adapter, records = Noting(), list[RangeRecord]()
    target = ModuleTarget(7, adapter, records.append, OutputForm("adapter", **form))
    run_passes(adapter_passes(reader, target), space())
    (record,) = records
    assert record.tensor == 7
    return adapter, record


@pytest.fixture
def tensors() -> list[torch.Tensor]:
    """A base, and two fine-tunes whose updates have rank 1."""
    generator = torch.Generator().manual_seed(2)
    base = torch.randn(8, 6, generator=generator)
    updates = [torch.randn(8, 1, generator=generator) @ torch.randn(1, 6, generator=generator) for _ in "ab"]
    return [base, *(base + update for update in updates)]


@pytest.mark.parametrize("method", ["cat", "dare_linear"])
def test_a_module_becomes_factors(tensors: list[torch.Tensor], method: str) -> None:
    """By the method's coefficients, or by a fold over ranges and a decomposition."""
    base, *tuned = tensors
    density = {"density": [1.0, 1.0]} if method == "dare_linear" else {}
    reader = reader_of(tuned, method, SUM | density, base=base, module=Module())
    adapter, record = run(reader, rank=2)
    ((left, right),) = adapter.factors
    expected = 0.5 * (tuned[0] - base) + 0.25 * (tuned[1] - base)
    torch.testing.assert_close(left @ right, expected, rtol=0, atol=1e-5)
    assert record.figures["rank"] == 2
    assert record.figures["error"] < 1e-5
    assert record.nonfinite == {}


def test_a_rank_that_is_too_low_is_told(tensors: list[torch.Tensor]) -> None:
    base, *tuned = tensors
    _, record = run(reader_of(tuned, "cat", SUM, base=base, module=Module()), rank=1)
    assert record.figures["rank"] == 1
    assert 0 < record.figures["error"] < 1
    assert record.figures["kept_by_rank"] == pytest.approx(1 - record.figures["error"] ** 2, abs=1e-5)


def test_what_has_no_module_is_saved(tensors: list[torch.Tensor]) -> None:
    base, *tuned = tensors
    adapter, record = run(reader_of(tuned, values=SUM, base=base))
    (values,) = adapter.values
    expected = base + 0.5 * (tuned[0] - base) + 0.25 * (tuned[1] - base)
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-6)
    assert record.figures == {}


def test_what_has_no_place_is_only_compared(tensors: list[torch.Tensor]) -> None:
    base, one, _ = tensors
    reader = reader_of([base.clone(), one], base=base, action="skip")
    adapter, record = run(reader)
    assert adapter.factors == adapter.values == []
    assert record.figures["left_out"] == pytest.approx(float((one - base).norm()), rel=1e-5)
    _, same = run(reader_of([base.clone()], base=base, action="skip"))
    assert same.figures == {}


def test_what_the_base_has_is_not_read() -> None:
    reader = reader_of([torch.ones(2, 2)], None, action="take_base")
    reader.sources = reader.inputs = reader.members = []
    adapter, record = run(reader)
    assert adapter.factors == adapter.values == []
    assert record == RangeRecord(7)


@pytest.mark.parametrize("more", [{"module": Module()}, {}, {"action": "skip"}])
def test_nan_is_counted_and_is_no_factor(tensors: list[torch.Tensor], more: dict[str, Any]) -> None:
    base, *tuned = tensors
    tuned[1][3, 2] = torch.nan
    adapter, record = run(reader_of(tuned, "ties", SUM, base=base, **more))
    assert record.nonfinite[2] == 1
    assert adapter.factors == []
    assert record.figures == {}
