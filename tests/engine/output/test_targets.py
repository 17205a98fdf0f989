"""What a checkpoint and an adapter do differently as outputs of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import submerge
from _adapters import Tuned, make_tuned
from _models import ROOM, Family, perturbed, state, write
from submerge.engine import MergePlan, Progress
from submerge.engine.output import TARGETS, Output, OutputTarget, Run
from submerge.engine.output._adapter_target import AdapterTarget, adapter_base, adapter_dtype, agreed
from submerge.engine.output._checkpoint_target import CheckpointTarget
from submerge.engine.output._records import Records
from submerge.engine.work import Finished, Meter, Passes, RangeRecord
from submerge.engine.work._passes import single
from submerge.store import JOURNAL, FileTable, TensorRecord, digest

SHAPES = {f"model.layers.{i}.weight": (6, 5) for i in range(4)} | {"model.norm.weight": (5,)}
LORA = {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "v_proj"]}


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    root = tmp_path_factory.mktemp("models")
    base = state(SHAPES)
    tuned = tuple(write(root / f"tuned{i}", perturbed(base, i)) for i in range(2))
    return Family(write(root / "base", base), tuned, "Toy")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    return make_tuned(tmp_path_factory.mktemp("adapters"), "llama", LORA, LORA | {"r": 2})


@pytest.fixture
def plan(family: Family) -> MergePlan:
    return submerge.plan(family.recipe("task_arithmetic"), ROOM)


@contextmanager
def output_of(plan: MergePlan, out: Path, *, resume: bool = False) -> Iterator[Output]:
    output = Output(plan, out, resume=resume, overwrite=False)
    try:
        yield output
    finally:
        output.journal.close()


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

    def complete(self, writer: None) -> None:
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


def test_a_checkpoint_takes_up_what_is_on_disk(plan: MergePlan, tmp_path: Path) -> None:
    """The line of the journal is there, and the bytes are."""
    out = tmp_path / "out"
    with output_of(plan, out) as output:
        target = CheckpointTarget(plan, output, Meter())
        name = plan.tensors[0].name
        data = memoryview(torch.arange(30.0).numpy().tobytes())
        with target.open() as writer:
            writer.write(target.entries[name], 0, data)
        written, lost = RangeRecord(0, 0, digest(data)), RangeRecord(1, 0, digest(b"lost"))
        for record in (written, lost, replace(written, tensor=2, part="of a bank that is not there")):
            target.accept(record)
        assert target.size(written) == 120
        assert target.total == sum(4 * tensor.numel for tensor in plan.tensors)
    with output_of(plan, out, resume=True) as output:
        assert list(CheckpointTarget(plan, output, Meter()).resume()) == [written]


def test_an_adapter_is_not_resumed(adapters: Tuned, tmp_path: Path) -> None:
    plan = submerge.plan(adapters.recipe("cat", output={"as": "adapter"}), ROOM)
    with output_of(plan, tmp_path / "out") as output:
        target = AdapterTarget(plan, output, Meter())
        target.accept(RangeRecord(0))
        assert list(target.resume()) == []
        assert not target.forks
        assert target.total == sum(tensor.numel for tensor in plan.tensors)
    assert len((output.folder / JOURNAL).read_text().splitlines()) == 1, "its head alone"


def test_what_was_left_out_of_an_adapter_is_told(adapters: Tuned, tmp_path: Path) -> None:
    plan = submerge.plan(adapters.recipe("cat", output={"as": "adapter"}), ROOM)
    with output_of(plan, tmp_path / "out") as output:
        target, records = AdapterTarget(plan, output, Meter()), Records(plan)
        assert target.warnings(records) == []
        records.add(RangeRecord(0, figures={"left_out": 0.5}))
        name = plan.tensors[0].name
        assert target.warnings(records) == [
            f"1 tensor differs from the base and has no place in an adapter: {name}"
        ]
        assert target.manifest_fields(records) == {"modules": {name: {"left_out": 0.5}}}


def test_the_base_and_the_type_of_an_adapter(adapters: Tuned, family: Family) -> None:
    def planned(method: str = "cat", **more: Any) -> MergePlan:
        return submerge.plan(adapters.recipe(method, output={"as": "adapter"}, **more), ROOM)

    assert adapter_base(planned())[0] == str(adapters.base)
    assert adapter_dtype(planned()) == "float32"
    assert adapter_dtype(planned(dtype="float16")) == "float16"
    assert agreed(["a", "a"]) == "a"
    assert agreed(["a", None]) is None
    assert set(TARGETS) == {"checkpoint", "adapter"}
