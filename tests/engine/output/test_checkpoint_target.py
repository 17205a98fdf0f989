"""A checkpoint as the target of a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

import submerge
from _models import ROOM
from engine.output.helpers_output import make_family, output_of
from submerge.engine.output import CheckpointTarget
from submerge.engine.work import Meter, RangeRecord
from submerge.store import digest


def test_a_checkpoint_takes_up_what_is_on_disk(tmp_path: Path) -> None:
    """The line of the journal is there, and the bytes are."""
    plan = submerge.plan(make_family(tmp_path / "models").recipe("task_arithmetic"), ROOM)
    out = tmp_path / "out"
    with output_of(plan, out) as output:
        target = CheckpointTarget(plan, output, Meter())
        name = plan.tensors[0].name
        data = memoryview(torch.arange(30.0).numpy().tobytes())
        with target.open() as writer:
            writer.write(target.plan.entries[name], 0, data)
        written, lost = RangeRecord(0, 0, digest(data)), RangeRecord(1, 0, digest(b"lost"))
        for record in (written, lost, replace(written, tensor=2, part="of a bank that is not there")):
            target.accept(record)
        assert target.size(written) == 120
        assert target.total == sum(4 * tensor.numel for tensor in plan.tensors)
    with output_of(plan, out, resume=True) as output:
        assert list(CheckpointTarget(plan, output, Meter()).resume()) == [written]
