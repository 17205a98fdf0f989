"""The records of a run, and what they add up to."""

from __future__ import annotations

from pathlib import Path

import pytest

import submerge
from _models import ROOM
from engine.output.helpers_output import make_family
from submerge.engine import MergePlan
from submerge.engine.output import Records
from submerge.engine.work import RangeRecord


@pytest.fixture
def plan(tmp_path: Path) -> MergePlan:
    return submerge.plan(make_family(tmp_path / "models").recipe("task_arithmetic"), ROOM)


def test_records_add_up(plan: MergePlan) -> None:
    records = Records(plan)
    late, early = RangeRecord(1, 1, "", ["b" * 32] * 3, {1: 1, -1: 1}), RangeRecord(1, 0, "", ["a" * 32] * 3)
    for record in (late, early):
        assert record not in records
        records.add(record)
        assert record in records
    assert records.of(1) == [early, late]
    assert (records.done(1), records.done(0)) == ({0, 1}, frozenset())
    one, two = (model.label for model in plan.models[1:])
    assert records.nonfinite() == {plan.tensors[1].name: {one: 1, "the output": 1}}
    assert records.figures() == records.differs() == {}
    assert {plan.models[i].label: read["tensors"] for i, read in records.read().items()} == {
        plan.models[0].label: 1, one: 1, two: 1,
    }  # fmt: skip
    assert len({read["xxh3_128"] for read in records.read().values()}) == 1
    records.add(RangeRecord(2, 0, differs=[1], figures={"rank": 3}))
    assert records.differs() == {plan.tensors[2].name: [two]}
    assert records.figures() == {plan.tensors[2].name: {"rank": 3}}
