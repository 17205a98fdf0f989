"""What members add to a parameter, with and without weights."""

from __future__ import annotations

import pytest
import torch

from _gated import dense, normal, triplets
from submerge.algebra import Triplets
from submerge.gating import Gate, GatedDense, GatedFactors, GatedTable, GatedUpdate, Group, Recent


def test_a_set_of_tasks_gets_the_mean_and_tasks_that_change_nothing_count() -> None:
    draw = torch.Generator().manual_seed(0)
    parts = {
        t: Triplets(
            torch.randn(6, 2, generator=draw),
            torch.rand(2, generator=draw),
            torch.randn(2, 4, generator=draw),
        )
        for t in (0, 2)
    }
    table = GatedTable(Gate(Recent(0)), "table", parts, count=3, rule="tsv_m", scale=0.5)
    base = torch.randn(6, 4, generator=draw)
    updates = [
        0.5 * (parts[t].left * parts[t].values) @ parts[t].right if t in parts else 0 for t in range(3)
    ]
    for tasks in ((0,), (1,), (0, 2), (0, 1), (0, 1, 2)):
        wanted = base + sum(updates[t] for t in tasks) / len(tasks)
        torch.testing.assert_close(table.dense(base, Group(tasks, 0, 1)), wanted)


@pytest.mark.parametrize("kind", [GatedDense, GatedFactors, GatedTable])
def test_members_with_weights_are_a_weighted_sum(kind: type[GatedUpdate]) -> None:
    """Of any rule; of members 0, 1 and 2 the second changes nothing."""
    gate, base = Gate(Recent(1 << 20)), normal(5, 6, 4)
    parts = {k: part for k, part in triplets(6, 4, 3).items() if k != 1}
    if kind is GatedDense:
        update: GatedUpdate = GatedDense(gate, "w", {k: dense(parts, k) for k in parts})
    elif kind is GatedTable:
        update = GatedTable(gate, "w", parts, count=3, rule="tsv_m", scale=1.0)
    else:
        update = GatedFactors(gate, "w", parts, rule="tsv_m", scale=1.0)
    wanted = base + 0.5 * dense(parts, 0) - 2 * dense(parts, 2)
    for weights in ([0.5, 7.0, -2.0], [0.5, 0.0, -2.0]):
        found = update.dense(base, Group((0, 1, 2), 0, 1, torch.tensor(weights)))
        torch.testing.assert_close(found, wanted)
    nothing = update.dense(base, Group((1,), 0, 1, torch.tensor([3.0])))
    torch.testing.assert_close(nothing, base)
    assert not gate.cache, "weighted sums are not stored"
    other = base + 1
    update.base = other
    torch.testing.assert_close(update.dense(base, Group((0,), 0, 1)), other + dense(parts, 0))
    assert update.resident(base) is other


def test_weights_keep_their_digits_where_rows_are_of_16_bits() -> None:
    """bfloat16 has 0.4004 for all weights around 0.4; the outputs, rounded one by one, tell them apart."""
    update = GatedFactors(Gate(Recent(0)), "w", triplets(24, 16, 1), rule="sum", scale=1.0)
    x = normal(3, 4000, 16).bfloat16()
    outputs = [x.new_zeros(4000, 24) for _ in range(3)]
    for y, weight in zip(outputs, (0.4, 0.401, 1.0), strict=True):
        update.add_(y, x, Group((0,), 0, 4000, torch.tensor([weight])))
    one = outputs.pop().double()
    for y, weight in zip(outputs, (0.4, 0.401), strict=True):
        assert float((y.double() * one).sum() / one.square().sum()) == pytest.approx(weight, abs=2e-4)
