"""Passes over one tensor in memory: what is left to do is written once, however it is cut."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.plan.helpers_plan import entry
from submerge.engine import Input, TensorPlan
from submerge.engine.work import (
    ChunkReader,
    RangeRecord,
    Workspace,
    memory_target,
    range_passes,
    ranges,
    run_passes,
)
from submerge.engine.work import _chunk_reader as chunks
from submerge.methods import METHODS
from submerge.store import MemorySource

SHAPE = (30, 50)
DRAW = torch.Generator().manual_seed(0)
BASE, ONE, TWO = (torch.randn(SHAPE, generator=DRAW) for _ in range(3))


def tensor(action: Any = "merge", method: str = "task_arithmetic", **values: Any) -> TensorPlan:
    """Return the plan of merging two updates of a base."""
    known = {option.name: option.default for option in METHODS[method].options}
    inputs = [Input(number, entry("w", SHAPE)) for number in range(3)]
    return TensorPlan(
        name="w", shape=SHAPE, dtype="F32", action=action, inputs=tuple(inputs[1:]), origin=inputs[0],
        method=METHODS[method], values={**known, "weight": [0.5, 0.25], **values},
    )  # fmt: skip


@contextmanager
def cut(length: int, task: int) -> Iterator[None]:
    """Let chunks have `length` elements, and ranges `task` chunks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "chunk_length", lambda count, width: length)
        patch.setattr(chunks, "task_length", lambda chunk: task * chunk)
        yield


def merged(plan: TensorPlan, **target: Any) -> tuple[torch.Tensor, list[RangeRecord]]:
    """Return what the passes write of a plan, and their records."""
    out, records = torch.full(SHAPE, 7.0), list[RangeRecord]()
    reader = ChunkReader(plan, [MemorySource(values) for values in (BASE, ONE, TWO)])
    made = replace(memory_target(0, out, "F32", records.append), **target)
    run_passes(range_passes(reader, made), Workspace(torch.device("cpu")))
    return out, records


@given(st.integers(1, 2000), st.integers(1, 9))
def test_ranges_cover_the_tensor_in_order(numel: int, length: int) -> None:
    found = ranges(numel, length)
    assert [one.number for one in found] == list(range(len(found)))
    assert [i for one in found for i in range(one.start, one.stop)] == list(range(numel))
    assert [tuple(one) for one in ranges(0, length)] == [(0, 0, 0)]


@pytest.mark.parametrize(("length", "task"), [(64, 1), (64, 3), (1500, 1), (7, 40)])
def test_any_cut_gives_the_same_merge(length: int, task: int) -> None:
    with cut(length, task):
        out, records = merged(tensor(method="ties", density=[0.5, 0.5]))
        assert sorted(record.range for record in records) == list(
            range(-(-SHAPE[0] * SHAPE[1] // (length * task)))
        )
    assert torch.equal(out, merged(tensor(method="ties", density=[0.5, 0.5]))[0])
    assert not torch.equal(out, BASE)


def test_the_update_comes_with_its_origin_or_without() -> None:
    update = 0.5 * (ONE - BASE) + 0.25 * (TWO - BASE)
    torch.testing.assert_close(merged(tensor())[0], BASE + update)
    torch.testing.assert_close(merged(tensor(), with_origin=False)[0], update)


def test_ranges_of_an_earlier_run_are_left_alone() -> None:
    with cut(100, 2):
        out, records = merged(tensor(), done=frozenset([0, 3]))
        assert [record.range for record in records] == [1, 2, 4, 5, 6, 7]
        complete = merged(tensor())[0].flatten()
        everything = merged(tensor(), done=frozenset(range(8)))
    written = torch.ones(SHAPE[0] * SHAPE[1], dtype=torch.bool)
    written[:200] = written[600:800] = False
    assert torch.equal(out.flatten()[written], complete[written])
    assert bool((out.flatten()[~written] == 7).all())
    assert everything[1] == []


def test_what_is_no_number_is_counted_by_member_and_in_the_output() -> None:
    out, (record,) = merged(tensor())
    assert record.nonfinite == {}
    bad = TWO.clone()
    bad[3, 4] = float("nan")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "TWO", bad)
        out, (record,) = merged(tensor())
    assert record.nonfinite == {2: 1, -1: 1}
    assert int(out.isnan().sum()) == 1
