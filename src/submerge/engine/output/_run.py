"""One run over a plan: the jobs, and the records of what is done."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from submerge._version import __version__
from submerge.deferred import torch
from submerge.engine.output._bank import gather
from submerge.engine.output._folder import Output
from submerge.engine.output._report import Progress
from submerge.engine.plan import MergePlan, TensorPlan
from submerge.engine.work import (
    Job,
    MatrixJob,
    Meter,
    Task,
    TaskRecord,
    can_fork,
    patches_of,
    ranges,
    run_forked,
    run_jobs,
    tally,
)
from submerge.store import (
    DIGEST,
    DTYPES,
    Adapter,
    BankParts,
    Checkpoint,
    FileTable,
    Manifest,
    ModelRecord,
    ShardWriter,
    Source,
    TensorEntry,
    TensorRecord,
    file_digest,
    joined,
    range_digest,
)

__all__ = ["CheckpointRun", "Run"]

LARGE = 32
"""A tensor of more than one part in so many is begun before the others."""
READ_AHEAD = 1 << 24
"""Elements of the next tensor that the system is asked to read early, from each input."""


@dataclass
class Run(ABC):
    """What runs of both forms of output share: records by tensor and task, and what they add up to."""

    plan: MergePlan
    output: Output
    meter: Meter = field(default_factory=Meter)
    records: dict[int, dict[int, TaskRecord]] = field(default_factory=lambda: defaultdict(dict))
    seconds: float = 0.0
    resumed: int = 0
    written: int = 0
    peak: int = 0

    @abstractmethod
    def go(self, device: torch.device, progress: Callable[[Progress], None]) -> None:
        """Do what is left to do."""

    @abstractmethod
    def written_tensors(self) -> dict[str, TensorRecord]:
        """Return what submerge.json says of each tensor of the output."""

    @property
    @abstractmethod
    def bytes_written(self) -> int:
        """Bytes of the output's weight files."""

    def seal(self) -> None:
        """Write what can only be written when all tensors are done."""
        return

    def warnings(self) -> list[str]:
        """Return what the run found to be worth a look, beside the plan's warnings."""
        return []

    def _sources(self, tensor: TensorPlan, inputs: FileTable) -> list[Source]:
        models = self.plan.models
        return [self.meter.source(models[i.model].source(i.entry.name, inputs)) for i in tensor.read]

    def _count_adapters(self) -> None:
        """Count the adapters' files as read: each is small, and is read about once."""
        files = {file for model in self.plan.models if model.adapter for file in model.adapter.files}
        self.meter.add_read(sum(file.stat().st_size for file in files), 0.0)

    def nonfinite(self) -> dict[str, dict[str, int]]:
        """Return, by tensor, how many NaN and Inf the output and each input hold."""
        found: dict[str, dict[str, int]] = {}
        for index in range(len(self.plan.tensors)):
            for record in self.records[index].values():
                tally(self.plan, found, record)
        return found

    def differs(self) -> dict[str, list[str]]:
        """Return, by kept tensor, the models whose values are other than those that were kept."""
        found: dict[str, list[str]] = {}
        for index, tensor in enumerate(self.plan.tensors):
            keys = sorted({k for record in self.records[index].values() for k in record.differs})
            if keys:
                found[tensor.name] = [self.plan.models[tensor.inputs[k].model].label for k in keys]
        return found

    def figures(self) -> dict[str, dict[str, Any]]:
        """Return, by tensor, what the method says of the matrices that it merged."""
        found = {
            self.plan.tensors[i].name: records[0].figures
            for i, records in self.records.items()
            if 0 in records
        }
        return {tensor.name: found[tensor.name] for tensor in self.plan.tensors if found.get(tensor.name)}

    def manifest(self, nonfinite: Mapping[str, Mapping[str, int]]) -> Manifest:
        """Return the content of submerge.json: the same for every run of the same merge."""
        plan = self.plan
        read = self._read()
        used = {i: sum(_takes_part(t, i, plan.donor) for t in plan.tensors) for i in plan.participants}
        return Manifest(
            version=__version__,
            recipe=plan.recipe.resolved(),
            models=[
                _described(model, plan.unused.get(i, ()), read.get(i, {}), used.get(i))
                for i, model in enumerate(plan.models)
                if model.files
            ],
            warnings=[*plan.warnings, *self.warnings()],
            nonfinite=nonfinite,
            differs=self.differs(),
            beyond_rows=list(plan.tokens.beyond) if plan.tokens else [],
            tensors=self.written_tensors(),
        )

    def _read(self) -> dict[int, dict[str, Any]]:
        """Return, by model, how many of its tensors were read and a digest of all their bytes."""
        read: dict[int, list[tuple[str, str]]] = defaultdict(list)
        for index, tensor in enumerate(self.plan.tensors):
            records = [self.records[index][k] for k in sorted(self.records[index])]
            for position, source in enumerate(tensor.read):
                if digests := [r.inputs[position] for r in records if r.inputs]:
                    read[source.model].append((tensor.name, joined(digests)))
        return {
            model: {"tensors": len(found), DIGEST: joined([digest for _, digest in sorted(found)])}
            for model, found in read.items()
        }


def _takes_part(tensor: TensorPlan, model: int, donor: int) -> bool:
    """Return whether a tensor is merged from one of this model's own, or from its adapter's part."""
    own = (i for i in tensor.inputs if i.model == model)
    return tensor.treatment == "merge" and any(model == donor or i.patch or not i.relative for i in own)


def _described(
    model: Checkpoint, unused: Sequence[str], read: Mapping[str, Any], used: int | None
) -> ModelRecord:
    """Return what submerge.json says of a model; `used` counts the tensors that it had a part in."""
    return ModelRecord(
        model=model.label,
        revision=model.revision,
        adapter=_adapter(model.adapter) if model.adapter else None,
        files={file.name: file.stat().st_size for file in model.files},
        names=model.renamed,
        read=read,
        used=used,
        unused=unused,
    )


def _adapter(adapter: Adapter) -> dict[str, Any]:
    return {
        **({"revision": adapter.revision} if adapter.revision else {}),
        DIGEST: joined([file_digest(file) for file in adapter.files]),
        "notes": list(adapter.notes),
    }


class CheckpointRun(Run):
    """Writes shards, range by range, and notes each in the journal; and the bank of a gate that is kept."""

    _bank: Mapping[str, TensorRecord] | None = None

    @property
    def bytes_written(self) -> int:
        """Bytes of the shards and of the bank."""
        bank = (self._bank or {}).values()
        return self.plan.bytes_written + sum(DTYPES[t.dtype].nbytes(t.shape) or 0 for t in bank)

    @cached_property
    def _parts(self) -> BankParts | None:
        return BankParts(self.output.folder) if self.plan.gate else None

    def seal(self) -> None:
        """Write the bank from its parts."""
        if self._parts is not None:
            self._bank = gather(self.plan, self._parts, self.output.folder)

    def manifest(self, nonfinite: Mapping[str, Mapping[str, int]]) -> Manifest:
        """Return the content of submerge.json, with the gate and what its bank holds."""
        gate = self.plan.gate.record(self.plan.models) if self.plan.gate else None
        return replace(super().manifest(nonfinite), gate=gate, bank=self._bank)

    @cached_property
    def entries(self) -> dict[str, TensorEntry]:
        """The output's tensors by name, with their places in the shards."""
        return {name: entry for shard in self.plan.shards for name, entry in shard.entries.items()}

    def go(self, device: torch.device, progress: Callable[[Progress], None]) -> None:
        """Do what is left to do."""
        total = sum(entry.nbytes for entry in self.entries.values())

        def tick() -> None:
            moved = self.meter.read + self.meter.written
            progress(Progress(self.written, total, moved, time.perf_counter() - begun))

        begun = time.perf_counter()
        with FileTable() as inputs, ShardWriter(self.output.folder, self.plan.shards) as writer:
            self._take_up()
            self._count_adapters()
            self._run(inputs, writer, device, tick)
        tick()
        self.seconds = time.perf_counter() - begun

    def _run(
        self, inputs: FileTable, writer: ShardWriter, device: torch.device, tick: Callable[[], None]
    ) -> None:
        """Run the jobs that are not done: in processes where they help, else in threads."""
        workers, tensors = self.plan.budget.workers, self.plan.tensors
        left = [
            i for i, t in enumerate(tensors) if len(self.records.get(i, ())) < len(ranges(t.numel, t.block))
        ]
        if can_fork([tensors[i].numel for i in left], workers, device):
            share = sum(tensors[i].numel for i in left) // LARGE
            left.sort(key=lambda i: tensors[i].numel < share)  # the large ones first, for an even end
            self.peak = run_forked(
                left,
                lambda i: self._job(i, inputs, writer),
                self._record,
                meter=self.meter,
                workers=workers,
                tick=tick,
            )
        else:
            jobs = (self._job(i, inputs, writer) for i in left)
            run_jobs(jobs, self._finished, threads=workers, device=device, tick=tick)

    def _span(self, record: TaskRecord) -> tuple[int, int]:
        tensor = self.plan.tensors[record.tensor]
        return ranges(tensor.numel, tensor.block)[record.task]

    def _take_up(self) -> None:
        """Accept the journal's records whose bytes are on disk as they were written."""
        with FileTable() as shards:
            for line in self.output.journal.lines:
                record = TaskRecord.from_json(line)
                entry = self.entries[self.plan.tensors[record.tensor].name]
                start, stop = self._span(record)
                itemsize = DTYPES[entry.dtype].itemsize
                on_disk = replace(entry, file=self.output.folder / str(entry.file))
                digest = range_digest(shards.source(on_disk), start, stop, itemsize)
                new = record.task not in self.records[record.tensor]
                kept = not record.part or (self._parts and self._parts.holds(record.tensor, record.part))
                if new and kept and digest == record.output:
                    self.records[record.tensor][record.task] = record
                    self.resumed += 1
                    self.written += (stop - start) * itemsize

    def _job(self, index: int, inputs: FileTable, writer: ShardWriter) -> Job:
        plan, tensor = self.plan, self.plan.tensors[index]
        for ahead in plan.tensors[index + 1 : index + 2]:
            for i in ahead.read:  # the disk works while this tensor is computed
                inputs.advise(i.entry, 0, min(i.entry.numel, READ_AHEAD))
        return (MatrixJob if tensor.matrix else Job)(
            index=index,
            plan=tensor,
            entry=self.entries[tensor.name],
            sources=self._sources(tensor, inputs),
            sink=self.meter.sink(writer),
            seed=plan.recipe.seed,
            done=frozenset(self.records.get(index, ())),
            patches=patches_of(plan.models, tensor, inputs),
            parts=self._parts,
        )

    def _finished(self, task: Task, result: Any) -> None:
        if isinstance(result, TaskRecord):
            self._record(result)

    def _record(self, record: TaskRecord) -> None:
        self.output.journal.append(record.to_json())
        self.records[record.tensor][record.task] = record
        start, stop = self._span(record)
        self.written += (stop - start) * DTYPES[self.plan.tensors[record.tensor].dtype].itemsize

    def written_tensors(self) -> dict[str, TensorRecord]:
        """Return what submerge.json says of each tensor of the output."""
        return {tensor.name: self._written(index) for index, tensor in enumerate(self.plan.tensors)}

    def _written(self, index: int) -> TensorRecord:
        tensor = self.plan.tensors[index]
        records = [self.records[index][k] for k in sorted(self.records[index])]
        return TensorRecord(
            dtype=tensor.dtype,
            shape=tensor.shape,
            digest=joined([r.output for r in records]),
            file=str(self.entries[tensor.name].file),
            treatment=tensor.treatment,
            block=tensor.block * DTYPES[tensor.dtype].itemsize if len(records) > 1 else None,
            note=tensor.why,
            new=tensor.name in self.plan.models[self.plan.donor].aliases,
            figures=records[0].figures,
        )
