"""A merge from a recipe to a folder."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import xxhash

from submerge._version import __version__
from submerge.engine._job import Job, Task, ranges
from submerge.engine._memory import peak_resident
from submerge.engine._meter import Meter
from submerge.engine._output import Output, check_target
from submerge.engine._plan import MergePlan, Settings, check_device, make_plan
from submerge.engine._pool import run_jobs
from submerge.engine._record import DIGEST, TaskRecord, joined
from submerge.engine._report import MergeReport, Progress, by_treatment
from submerge.engine._tensor import chunk_length, task_length
from submerge.errors import WorkError
from submerge.recipe import Recipe
from submerge.store import DTYPES, FileTable, ShardWriter, Source, TensorEntry

__all__ = ["merge", "nonfinite_error"]

READ_AHEAD = 1 << 24
"""Elements of the next tensor that the system is asked to read early, from each input."""


def merge(
    recipe: str | Path | Mapping[str, Any] | Recipe | MergePlan,
    out: str | Path,
    *,
    settings: Settings | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Callable[[Progress], None] = lambda _: None,
) -> MergeReport:
    """Merge by `recipe` into the folder `out`, an ordinary Hugging Face checkpoint; return the report.

    Args:
        recipe: a path, YAML text (with a newline), a mapping, a `Recipe`, or a `MergePlan`.
        out: the folder to make. It is built as `OUT.incomplete` and renamed when it is whole.
        settings: how to run (ignored for a `MergePlan`, which has its own).
        resume: go on from what an interrupted run of the same merge left.
        overwrite: replace a folder that is not empty.
        progress: called about ten times a second.

    Raises:
        RequestError: the recipe, the inputs or `out` are not right; nothing was written.
        WorkError: the disk, a file or the values failed; `out` is as it was before.
    """
    begun = time.perf_counter()
    plan = recipe if isinstance(recipe, MergePlan) else make_plan(recipe, settings)
    if plan.pending:  # everything was checked by the headers: now the weights are worth their download
        plan = make_plan(plan.recipe, plan.settings, download=True)
    device = check_device(plan.settings.device)
    out = Path(out)
    check_target(plan, out, overwrite)
    output = Output(plan, out, resume=resume, overwrite=overwrite)
    run = _Run(plan, output)
    try:
        run.go(device, progress)
        nonfinite = run.nonfinite()
        if nonfinite and not plan.settings.allow_nonfinite:
            raise nonfinite_error(nonfinite)
        output.check_inputs()
        output.finish(run.manifest(nonfinite))
    finally:
        output.journal.close()
    busy = max(1e-9, run.seconds * plan.budget.workers)
    return MergeReport(
        out=output.out,
        seconds=time.perf_counter() - begun,
        bytes_read=run.meter.read,
        bytes_written=plan.bytes_written,
        reading=min(1.0, run.meter.reading / busy),
        writing=min(1.0, run.meter.writing / busy),
        peak_memory_bytes=peak_resident(),
        workers=plan.budget.workers,
        tensors=by_treatment([t.treatment for t in plan.tensors]),
        resumed=run.resumed,
        nonfinite=nonfinite,
        differs=run.differs(),
        warnings=plan.warnings,
    )


def nonfinite_error(found: Mapping[str, Mapping[str, int]]) -> WorkError:
    """Return the error that names the tensors with NaN or Inf, and whose they are."""
    shown = [
        f"  {name}: " + ", ".join(f"{count} in {where}" for where, count in counts.items())
        for name, counts in list(found.items())[:10]
    ]
    shown += [f"  … and {len(found) - 10} tensors more"] if len(found) > 10 else []
    count = "1 tensor" if len(found) == 1 else f"{len(found)} tensors"
    hint = "mend the inputs, or allow them with --allow-nonfinite (--resume keeps the work that is done)"
    return WorkError("\n".join([f"NaN or Inf in {count} — {hint}:", *shown]))


@dataclass
class _Run:
    """One run over a plan: the jobs it still has to do, and the records of all that is done."""

    plan: MergePlan
    output: Output
    meter: Meter = field(default_factory=Meter)
    records: dict[int, dict[int, TaskRecord]] = field(default_factory=lambda: defaultdict(dict))
    seconds: float = 0.0
    resumed: int = 0
    written: int = 0

    def __post_init__(self) -> None:
        self.entries: dict[str, TensorEntry] = {
            name: entry for shard in self.plan.shards for name, entry in shard.entries.items()
        }

    def go(self, device: torch.device, progress: Callable[[Progress], None]) -> None:
        """Do what is left to do."""
        total = sum(entry.nbytes for entry in self.entries.values())

        def tick() -> None:
            progress(Progress(self.written, total, self.meter.read + self.meter.written))

        begun = time.perf_counter()
        with FileTable() as inputs, ShardWriter(self.output.folder, self.plan.shards) as writer:
            self._take_up()
            run_jobs(
                self._jobs(inputs, writer),
                self._finished,
                threads=self.plan.budget.workers,
                device=device,
                tick=tick,
            )
        tick()
        self.seconds = time.perf_counter() - begun

    def _block(self, index: int) -> int:
        """Return the elements of one task of a tensor: what one record, and one digest, covers."""
        tensor = self.plan.tensors[index]
        return task_length(chunk_length(len(tensor.inputs), tensor.width))

    def _span(self, record: TaskRecord) -> tuple[int, int]:
        return ranges(self.plan.tensors[record.tensor].numel, self._block(record.tensor))[record.task]

    def _take_up(self) -> None:
        """Accept the journal's records whose bytes are on disk as they were written."""
        with FileTable() as shards:
            for line in self.output.journal.lines:
                record = TaskRecord.from_json(line)
                entry = self.entries[self.plan.tensors[record.tensor].name]
                start, stop = self._span(record)
                view = memoryview(bytearray((stop - start) * DTYPES[entry.dtype].itemsize))
                on_disk = replace(entry, file=self.output.folder / str(entry.file))
                shards.source(on_disk).read(start, stop - start, view)
                new = record.task not in self.records[record.tensor]
                if new and xxhash.xxh3_128_hexdigest(view) == record.output:
                    self.records[record.tensor][record.task] = record
                    self.resumed += 1
                    self.written += view.nbytes

    def _jobs(self, inputs: FileTable, writer: ShardWriter) -> Iterator[Job]:
        plan = self.plan
        for index, tensor in enumerate(plan.tensors):
            sources: list[Source] = [
                self.meter.source(plan.models[i.model].source(i.entry.name, inputs)) for i in tensor.read
            ]
            job = Job(
                index=index,
                plan=tensor,
                entry=self.entries[tensor.name],
                sources=sources,
                sink=self.meter.sink(writer),
                seed=plan.recipe.seed,
                done=frozenset(self.records.get(index, ())),
            )
            if len(job.done) < job.tasks_in_all:
                for ahead in plan.tensors[index + 1 : index + 2]:
                    for i in ahead.read:  # the disk works while this tensor is computed
                        inputs.advise(i.entry, 0, min(i.entry.numel, READ_AHEAD))
                yield job

    def _finished(self, task: Task, result: Any) -> None:
        if isinstance(result, TaskRecord):
            self.output.journal.append(result.to_json())
            self.records[result.tensor][result.task] = result
            start, stop = self._span(result)
            self.written += (stop - start) * DTYPES[task.job.entry.dtype].itemsize

    def nonfinite(self) -> dict[str, dict[str, int]]:
        """Return, by tensor, how many NaN and Inf the output and each input hold."""
        found: dict[str, dict[str, int]] = {}
        for index in range(len(self.plan.tensors)):
            for record in self.records[index].values():
                self.plan.tally(found, record)
        return found

    def differs(self) -> dict[str, list[str]]:
        """Return, by kept tensor, the models whose values are other than those that were kept."""
        found: dict[str, list[str]] = {}
        for index, tensor in enumerate(self.plan.tensors):
            keys = sorted({k for record in self.records[index].values() for k in record.differs})
            if keys:
                found[tensor.name] = [self.plan.models[tensor.inputs[k].model].label for k in keys]
        return found

    def manifest(self, nonfinite: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
        """Return the content of submerge.json: the same for every run of the same merge."""
        plan = self.plan
        tensors: dict[str, Any] = {}
        read: dict[int, list[tuple[str, str]]] = defaultdict(list)
        for index, tensor in enumerate(plan.tensors):
            records = [self.records[index][k] for k in sorted(self.records[index])]
            for position, source in enumerate(tensor.read):
                read[source.model].append((tensor.name, joined([r.inputs[position] for r in records])))
            line: dict[str, Any] = {
                "file": str(self.entries[tensor.name].file),
                "treatment": tensor.treatment,
                "dtype": tensor.dtype,
                "shape": list(tensor.shape),
                DIGEST: joined([r.output for r in records]),
            }
            if len(records) > 1:
                line["block"] = self._block(index) * DTYPES[tensor.dtype].itemsize
            if tensor.why:
                line["note"] = tensor.why
            tensors[tensor.name] = line
        return {
            "submerge": __version__,
            "recipe": plan.recipe.resolved(),
            "models": [
                {
                    "model": model.label,
                    **({"revision": model.revision} if model.revision else {}),
                    "files": {f.name: f.stat().st_size for f in model.files},
                    "read": {
                        "tensors": len(read[i]),
                        DIGEST: joined([d for _, d in sorted(read[i])]) if read[i] else "",
                    },
                    **({"unused": list(plan.unused[i])} if i in plan.unused else {}),
                }
                for i, model in enumerate(plan.models)
            ],
            "warnings": list(plan.warnings),
            "nonfinite": nonfinite,
            "differs": self.differs(),
            "tensors": tensors,
        }
