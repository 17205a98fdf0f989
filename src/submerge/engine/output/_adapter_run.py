"""One run over a plan whose result is an adapter."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from submerge.deferred import torch
from submerge.engine.output._report import Progress
from submerge.engine.output._run import Run
from submerge.engine.plan import TensorPlan, adapter_file, lora_keys
from submerge.engine.work import AdapterJob, Task, TaskRecord, patches_of, run_jobs
from submerge.errors import WorkError, few
from submerge.store import (
    DTYPES,
    AdapterWriter,
    FileTable,
    LoraKeys,
    LowRank,
    Manifest,
    MemorySink,
    TensorEntry,
    TensorRecord,
    module_names,
    range_digest,
    read_header,
    respelling,
)

__all__ = ["AdapterRun", "Modules", "agreed"]


@dataclass(frozen=True)
class Modules:
    """Hands an adapter's modules to its writer, with names as `spelled` has them."""

    writer: AdapterWriter
    spelled: Callable[[str], str]

    def factors(self, plan: TensorPlan, left: torch.Tensor, right: torch.Tensor) -> None:
        """Take the update left [m, r] · right [r, n] of a tensor."""
        module = plan.module
        assert module is not None
        name = self.spelled(plan.name)
        self.writer.add(
            name, left, right, kind=module.kind, transposed=module.transposed, kernel=module.kernel
        )

    def whole(self, plan: TensorPlan, values: torch.Tensor) -> None:
        """Take new values of a whole tensor."""
        self.writer.save(self.spelled(plan.name), values)


class AdapterRun(Run):
    """Merges module by module into PEFT's files, or into one LoRA file where all inputs are such files."""

    def go(self, device: torch.device, progress: Callable[[Progress], None]) -> None:
        """Do all that there is to do: it is too little to take up where another run stopped."""
        plan = self.plan
        total = sum(tensor.numel for tensor in plan.tensors)

        def tick() -> None:
            progress(Progress(self.written, total, self.meter.read, time.perf_counter() - begun))

        begun = time.perf_counter()
        with FileTable() as inputs, AdapterWriter(self.output.folder, self._lora_keys) as writer:
            self._count_adapters()
            spelled = self._spelling() if self._lora_keys is None else str
            run_jobs(
                self._adapter_jobs(inputs, Modules(writer, spelled)),
                self._finished,
                threads=plan.budget.workers,
                device=device,
                tick=tick,
            )
            if self.nonfinite() and not plan.settings.allow_nonfinite:
                return  # and be refused
            if not writer.rank:
                what = "every merged update is zero: there is nothing for an adapter to hold"
                raise WorkError(f"{self.output.out}: {what} — look at the models and their weights")
            base, revision = self._base()
            writer.finish(
                base=base,
                base_revision=revision,
                dtype=self.dtype,
                task_type=agreed([m.adapter.config.get("task_type") for m in plan.models if m.adapter]),
            )
        tick()
        self.seconds = time.perf_counter() - begun

    def _adapter_jobs(self, inputs: FileTable, modules: Modules) -> Iterator[AdapterJob]:
        plan = self.plan
        for index, tensor in enumerate(plan.tensors):
            yield AdapterJob(
                index=index,
                plan=tensor,
                entry=TensorEntry(tensor.name, tensor.dtype, tensor.shape, None, 0, 0),
                sources=self._sources(tensor, inputs),
                sink=MemorySink({}),  # nothing is written by ranges
                seed=plan.recipe.seed,
                hashed=False,
                patches=patches_of(plan.models, tensor, inputs),
                form=plan.recipe.output,
                adapter=modules,
                dtype=getattr(torch, self.dtype),
            )

    def _finished(self, task: Task, result: Any) -> None:
        if isinstance(result, TaskRecord):
            self.records[result.tensor][0] = result
            self.written += task.job.plan.numel

    def _spelling(self) -> Callable[[str], str]:
        """Return how names are spelled: as the adapters have them (the first one first), or the modules."""
        names: dict[str, str] = {}
        for model in reversed(self.plan.models):
            names |= model.adapter.names if model.adapter else {}
        if not names:  # fine-tunes alone
            base = self.plan.models[self.plan.donor]
            names = module_names(base.config, base.tensors)
        return respelling(names)

    @cached_property
    def _lora_keys(self) -> dict[str, LoraKeys] | None:
        return lora_keys(self.plan.tensors, self.plan.models)

    def _base(self) -> tuple[str | None, str | None]:
        """Return the base that the adapter is for: the inputs' own if they agree, else the recipe's."""
        adapters = [model.adapter for model in self.plan.models if model.adapter]
        own = agreed([adapter.base for adapter in adapters])
        if own is not None:
            return own, agreed([adapter.base_revision for adapter in adapters])
        return self.plan.recipe.base, None

    @cached_property
    def dtype(self) -> str:
        """Return the recipe's dtype, else the widest of the factors that come in; float32 for new ones."""
        recipe, plan = self.plan.recipe, self.plan
        if wanted := recipe.out_dtype or recipe.dtype:
            return wanted
        if any(not i.relative for tensor in plan.tensors for i in tensor.inputs):
            return "float32"
        found = {
            part.left_entry.dtype
            for model in plan.models
            if model.adapter
            for part in model.adapter.parts.values()
            if isinstance(part, LowRank)
        }
        return {frozenset({"BF16"}): "bfloat16", frozenset({"F16"}): "float16"}.get(
            frozenset(found), "float32"
        )

    def written_tensors(self) -> dict[str, TensorRecord]:
        """Return what submerge.json says of the tensors in the adapter's file."""
        entries = read_header(self._file).entries
        with FileTable() as table:
            return {name: self._written(entry, table) for name, entry in entries.items()}

    def _written(self, entry: TensorEntry, table: FileTable) -> TensorRecord:
        itemsize = DTYPES[entry.dtype].itemsize
        digest = range_digest(table.source(entry), 0, entry.numel, itemsize)
        return TensorRecord(entry.dtype, entry.shape, digest, file=self._file.name, treatment="merge")

    def warnings(self) -> list[str]:
        """Return what was found to be left out, if anything was."""
        left = [name for name, figures in self.figures().items() if figures.get("left_out")]
        if not left:
            return []
        count = "1 tensor differs" if len(left) == 1 else f"{len(left)} tensors differ"
        have = "has" if len(left) == 1 else "have"
        return [f"{count} from the base and {have} no place in an adapter: {few(left)}"]

    @property
    def bytes_written(self) -> int:
        """Bytes of the adapter's file."""
        return self._file.stat().st_size if self._file.exists() else 0

    @property
    def _file(self) -> Path:
        folder = self.output.folder if self.output.folder.exists() else self.output.out
        return folder / adapter_file(self.plan.tensors, self.plan.models)

    def manifest(self, nonfinite: Mapping[str, Mapping[str, int]]) -> Manifest:
        """Return the content of submerge.json, with what was done to each module."""
        return replace(super().manifest(nonfinite), modules=self.figures())


def agreed(values: list[str | None]) -> str | None:
    """Return the value that all have, or None."""
    return values[0] if len(set(values)) == 1 else None
