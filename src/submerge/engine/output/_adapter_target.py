"""An adapter as the output of a run: PEFT's files, or one LoRA file where all inputs are such files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from submerge.deferred import torch
from submerge.engine.output._records import Records
from submerge.engine.output._target import OutputTarget
from submerge.engine.output._vllm import vllm_command
from submerge.engine.plan import MergePlan, TensorPlan, adapter_file, lora_keys
from submerge.engine.work import Finished, ModuleTarget, Passes, RangeRecord, adapter_passes
from submerge.errors import WorkError, few
from submerge.names import module_names, respelling
from submerge.store import (
    AdapterWriter,
    Checkpoint,
    FileTable,
    LoraKeys,
    LowRankPart,
    TensorEntry,
    TensorRecord,
    range_digest,
    read_header,
)

__all__ = ["AdapterModules", "AdapterTarget"]


@dataclass(frozen=True)
class AdapterModules:
    """Hands an adapter's modules to its writer, with names as `spelled` has them.

    Tables are the `models`'. With a parameter in `ties` its other names get its new values.
    """

    writer: AdapterWriter
    spelled: Callable[[str], str]
    models: Sequence[Checkpoint]
    ties: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def add_factors(self, plan: TensorPlan, left: torch.Tensor, right: torch.Tensor) -> None:
        """Take the update left [m, r] · right [r, n] of a tensor."""
        module = plan.module
        assert module is not None
        name = self.spelled(plan.name)
        self.writer.add(
            name, left, right, kind=module.kind, transposed=module.transposed, kernel=module.kernel
        )
        if module.table is not None:
            adapter, entry = self.models[module.table.model].adapter, module.table.entry
            assert adapter is not None  # which has saved it
            self.writer.keep(name, entry, partial(adapter.source, entry))

    def save_values(self, plan: TensorPlan, values: torch.Tensor) -> None:
        """Take new values of all of a tensor."""
        for name in (plan.name, *self.ties.get(plan.name, ())):
            self.writer.save(self.spelled(name), values)

    def save_rows(self, plan: TensorPlan, values: torch.Tensor) -> None:
        """Take new values of the rows that a plan names."""
        self.writer.save_rows(self.spelled(plan.name), plan.rows, values)


class AdapterTarget(OutputTarget[AdapterWriter]):
    """Collects modules, and writes them when all are there: too little work to be resumed or forked."""

    @property
    def total(self) -> int:
        """Elements of all tensors: how many bytes they will be is not known before their ranks are."""
        return sum(tensor.numel for tensor in self.plan.tensors)

    @property
    def bytes_written(self) -> int:
        """Bytes of the adapter's file."""
        return self._nbytes

    _nbytes = 0

    def open(self) -> AdapterWriter:
        """Open the file that modules are collected in."""
        return AdapterWriter(self.output.folder, self._lora_keys)

    def job(
        self, index: int, inputs: FileTable, writer: AdapterWriter, finished: Finished, done: frozenset[int]
    ) -> Passes:
        """Return the passes that make a tensor a module of the adapter."""
        modules = AdapterModules(writer, self._spelled, self.plan.models, self.plan.ties)
        dtype = getattr(torch, adapter_dtype(self.plan))
        target = ModuleTarget(index, modules, finished, self.plan.recipe.output, dtype)
        return adapter_passes(self.reader(index, inputs), target)

    def size(self, record: RangeRecord) -> int:
        """Return the elements of a tensor."""
        return self.plan.tensors[record.tensor].numel

    def complete(self, writer: AdapterWriter, records: Records) -> None:
        """Write the adapter; raise `WorkError` where there is nothing in it."""
        if not writer.rank:
            raise WorkError(f"{self.output.out}: {_nothing(_left_out(records))}")
        base, revision = adapter_base(self.plan)
        writer.finish(
            base=base,
            base_revision=revision,
            dtype=adapter_dtype(self.plan),
            task_type=agreed([m.adapter.config.get("task_type") for m in self.plan.models if m.adapter]),
            ties=bool(self.plan.ties),
        )
        self._nbytes = self._file.stat().st_size

    @cached_property
    def _lora_keys(self) -> dict[str, LoraKeys] | None:
        return lora_keys(self.plan.tensors, self.plan.models)

    @cached_property
    def _spelled(self) -> Callable[[str], str]:
        return spelling(self.plan) if self._lora_keys is None else str

    @property
    def _file(self) -> Path:
        return self.output.folder / adapter_file(self.plan.tensors, self.plan.models)

    def tensors(self, records: Records) -> dict[str, TensorRecord]:
        """Return what submerge.json says of the tensors in the adapter's file."""
        with FileTable() as table:
            return {name: self._record(e, table) for name, e in read_header(self._file).entries.items()}

    def _record(self, entry: TensorEntry, table: FileTable) -> TensorRecord:
        itemsize = entry.itemsize
        digest = range_digest(table.source(entry), 0, entry.numel, itemsize)
        return TensorRecord(entry.dtype, entry.shape, digest, file=self._file.name, treatment="merge")

    def manifest_fields(self, records: Records) -> dict[str, Any]:
        """Return what was done to each module."""
        return {"modules": records.figures()}

    @property
    def serve(self) -> str | None:
        """vLLM's command for the adapter, where it would take it."""
        out = self.output.out
        return vllm_command({out.name: out}, self.plan.inputs.reference_model.config)

    def warnings(self, records: Records) -> list[str]:
        """Return what the method warns of, and what was found to be left out, if anything was."""
        warnings = super().warnings(records)
        left_out = _left_out(records)
        if not left_out:
            return warnings
        count = "1 tensor differs" if len(left_out) == 1 else f"{len(left_out)} tensors differ"
        have = "has" if len(left_out) == 1 else "have"
        return [*warnings, f"{count} from the base and {have} no place in an adapter: {few(left_out)}"]


def _left_out(records: Records) -> list[str]:
    """Return the tensors that differ from the base's, and that an adapter has no place for."""
    return [name for name, figures in records.figures().items() if figures.get("left_out")]


def _nothing(left_out: Sequence[str]) -> str:
    """Return why there is nothing in an adapter: all that differs has no place in it, or nothing does."""
    if not left_out:
        return (
            "every merged update is zero: there is nothing for an adapter to hold — look at the models and "
            "their weights"
        )
    return (
        f"an adapter has no place for what differs from the base: {few(left_out)} — it holds updates of "
        "matrices, and packed experts, biases and norms are none: write a checkpoint, or take the fine-tune"
    )


def spelling(plan: MergePlan) -> Callable[[str], str]:
    """Return how names are spelled: as the adapters have them (the first one first), or the modules."""
    names: dict[str, str] = {}
    for model in reversed(plan.models):
        names |= model.adapter.names if model.adapter else {}
    if not names:  # fine-tunes alone
        base = plan.inputs.reference_model
        names = module_names(base.config, base.tensors)
    return respelling(names)


def adapter_base(plan: MergePlan) -> tuple[str | None, str | None]:
    """Return the base that the adapter is for, and its revision: the inputs' own if they agree.

    Else it is the recipe's.
    """
    adapters = [model.adapter for model in plan.models if model.adapter]
    own = agreed([adapter.base for adapter in adapters])
    if own is not None:
        return own, agreed([adapter.base_revision for adapter in adapters])
    return plan.recipe.base, None


def adapter_dtype(plan: MergePlan) -> str:
    """Return the recipe's dtype, else the widest of the factors that come in; float32 for new ones."""
    if wanted := plan.recipe.out_dtype or plan.recipe.dtype:
        return wanted
    if any(not i.relative for tensor in plan.tensors for i in tensor.inputs):
        return "float32"
    adapters = [model.adapter for model in plan.models if model.adapter]
    parts = [part for adapter in adapters for part in adapter.parts.values()]
    codes = frozenset(part.left_entry.dtype for part in parts if isinstance(part, LowRankPart))
    return {frozenset({"BF16"}): "bfloat16", frozenset({"F16"}): "float16"}.get(codes, "float32")


def agreed(values: list[str | None]) -> str | None:
    """Return the value that all have, or None."""
    return values[0] if len(set(values)) == 1 else None
