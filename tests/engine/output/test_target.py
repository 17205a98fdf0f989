"""What a run asks of its target, whatever that writes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import submerge
from _models import ROOM
from engine.output.helpers_output import make_family, output_of
from submerge.engine import MergePlan, Progress
from submerge.engine.output import TARGETS, Output, OutputTarget, Records, Run
from submerge.engine.work import Finished, Meter, Passes, RangeRecord
from submerge.engine.work._passes import single
from submerge.store import FileTable, TensorRecord


@pytest.fixture
def plan(tmp_path: Path) -> MergePlan:
    return submerge.plan(make_family(tmp_path / "models").recipe("task_arithmetic"), ROOM)


class Nowhere(OutputTarget[None]):
    """Merges nothing, and notes what a run asks of it."""

    def __init__(self, plan: MergePlan, output: Output, earlier: tuple[RangeRecord, ...] = ()) -> None:
        super().__init__(plan, output, Meter())
        self.earlier, self.asked = earlier, list[str]()

    total, bytes_written = 5, 0

    @contextmanager
    def open(self) -> Iterator[None]:
        self.asked.append("open")
        yield
        self.asked.append("close")

    def resume(self) -> tuple[RangeRecord, ...]:
        return self.earlier

    def job(
        self, index: int, inputs: FileTable, writer: None, finished: Finished, done: frozenset[int]
    ) -> Passes:
        nonfinite = {-1: 2} if index == 1 else {}
        yield single(1, lambda _: finished(RangeRecord(index, nonfinite=nonfinite)))

    def accept(self, record: RangeRecord) -> None:
        self.asked.append(f"accept {record.tensor}")

    def size(self, record: RangeRecord) -> int:
        return 1

    def complete(self, writer: None, records: Records) -> None:
        self.asked.append("complete")

    def tensors(self, records: Records) -> dict[str, TensorRecord]:
        return {}


def test_a_run_does_what_is_left(plan: MergePlan, tmp_path: Path) -> None:
    allowing = replace(plan, settings=replace(plan.settings, allow_nonfinite=True, threads=1))
    with output_of(allowing, tmp_path / "out") as output:
        target = Nowhere(allowing, output, (RangeRecord(0), RangeRecord(3), RangeRecord(3)))
        run, seen = Run(target), list[Progress]()
        run.execute(torch.device("cpu"), seen.append)
        assert sorted(target.asked[1:-2]) == ["accept 1", "accept 2", "accept 4"]
        assert (target.asked[0], target.asked[-2:]) == ("open", ["complete", "close"])
        assert (run.resumed, run.written) == (2, 5)
        assert (seen[-1].written, seen[-1].total) == (5, 5)
        assert run.manifest().nonfinite == {plan.tensors[1].name: {"the output": 2}}


def test_values_that_are_not_finite_end_a_run_before_it_is_complete(plan: MergePlan, tmp_path: Path) -> None:
    with output_of(plan, tmp_path / "out") as output:
        target = Nowhere(plan, output)
        with pytest.raises(submerge.WorkError, match="NaN or Inf in 1 tensor"):
            Run(target).execute(torch.device("cpu"), lambda _: None)
        assert "complete" not in target.asked


def test_each_output_that_a_recipe_can_ask_for_has_a_target() -> None:
    assert set(TARGETS) == {"checkpoint", "adapter"}
