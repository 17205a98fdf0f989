"""The merge of a state's tasks as an adapter in PEFT's form, or folded into the base as a checkpoint."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from glob import escape
from pathlib import Path
from typing import Any

from submerge._version import __version__
from submerge.algebra import LowRank, LpmOptions, factored
from submerge.continual._card import export_card
from submerge.continual._lpm import StoredTasks
from submerge.continual._manifest import StateManifest, TaskRecord
from submerge.continual._merged_tensors import MergedTensors
from submerge.continual._projectors import ProjectorGate
from submerge.continual._state_folder import LOCK, locked
from submerge.deferred import torch
from submerge.engine import Settings, merge
from submerge.engine.output import SUFFIX, give_name, unfinished_folder, why_taken
from submerge.errors import Problem, RequestError, WorkError, few, writing
from submerge.store import (
    ADAPTER_CONFIG,
    ADAPTER_STEM,
    BANK,
    DIGEST,
    MANIFEST,
    AdapterWriter,
    Checkpoint,
    FileTable,
    Manifest,
    ModelRecord,
    TensorRecord,
    range_digest,
    read_header,
    sync_file,
    sync_folder,
)

__all__ = ["Export", "ExportReport", "write_adapter", "write_checkpoint"]


BESIDE, MERGED = ".tasks-", "merged-tasks"
"""What a folder beside an output is called after the output's name, and what is in it."""
WRITTEN = frozenset((ADAPTER_CONFIG, f"{ADAPTER_STEM}.safetensors", BANK, MANIFEST, "README.md"))
"""The files of an exported adapter."""


@dataclass(frozen=True)
class ExportReport:
    """What was exported: the folder, its form, the tasks in it, and the rank of the adapter.

    `error` is ‖Δ − B A‖ / ‖Δ‖ of the linear map of which the rank that was asked for keeps least.
    `rank` is 0 of a checkpoint into which updates are folded of which one is dense. `projectors` is how many
    projectors the folder's gate mixes; 0 without a gate. `weights` are those other than 1, and `scale` is λ.
    """

    out: Path
    form: str
    tasks: tuple[str, ...]
    rank: int
    error: float
    projectors: int = 0
    warnings: tuple[str, ...] = ()
    weights: Mapping[str, float] = field(default_factory=dict)
    scale: float = 1.0


@dataclass(frozen=True)
class Export:
    """What is exported of a state.

    Attributes:
        manifest: of the state.
        lpm: how the tasks are merged.
        merge: of the tasks.
        saved: values that are other than the base's, by the names that adapters have for them.
        gate: what mixes the tasks' projectors, if one has changed it.
        warnings: what of the gate deserves a look.
        weights: of tasks that do not have the weight 1.
    """

    manifest: StateManifest
    lpm: LpmOptions
    merge: StoredTasks
    saved: Callable[[], Iterable[tuple[str, torch.Tensor]]] = tuple
    gate: ProjectorGate | None = None
    warnings: tuple[str, ...] = ()
    weights: Mapping[str, float] = field(default_factory=dict)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks, sorted: nothing depends on the order in which they were added."""
        return tuple(sorted(self.manifest.names))

    def describe(self, folder: Path, form: str, made: Manifest | None = None) -> None:
        """Write what stands beside the weights: the gate's bank, if there is one, `submerge.json`, a card.

        `made` is what the merge into a checkpoint says of it. An adapter has the file only with a gate, or
        with weights.
        """
        if made is None and (self.gate is not None or self.weights):
            made = Manifest(__version__, {}, (), (), {}, {}, _tensor_records(folder))
        if made is not None:
            record = self.gate.record if self.gate else None
            bank = self.gate.write(folder) if self.gate else None
            tasks = map(self.manifest.task, self.tasks)
            models = [*made.models[:1], *map(_model_record, tasks)]
            recipe = self._recipe(form, made.recipe.get("base_model", self.manifest.base.spec))
            recipe |= {"dtype": made.recipe["dtype"]} if "dtype" in made.recipe else {}
            made = replace(made, recipe=recipe, models=models, gate=record, bank=bank)
            (folder / MANIFEST).write_text(made.text, encoding="utf-8")
        card = export_card(
            folder.name.removesuffix(SUFFIX),
            form,
            base=self.manifest.base,
            tasks=self.tasks,
            weights=self.weights,
            mixes=self.gate is not None,
        )
        (folder / "README.md").write_text(card, encoding="utf-8")

    def _recipe(self, form: str, base: str) -> dict[str, Any]:
        """Return the recipe of the same merge, with the state's tasks for models."""
        lpm = asdict(self.lpm)
        return {
            "merge_method": "many",
            "base_model": base,
            "models": [self._recipe_model(name) for name in self.tasks],
            "parameters": {"statistics": self.manifest.options.statistics, **lpm},
            **({"output": {"as": "adapter"}} if form == "adapter" else {}),
        }

    def _recipe_model(self, task: str) -> dict[str, Any]:
        weight = {"parameters": {"weight": self.weights[task]}} if task in self.weights else {}
        return {"model": task, **weight}


def _model_record(task: TaskRecord) -> ModelRecord:
    """Return what `submerge.json` says of a task."""
    adapter = {DIGEST: task.adapter, "notes": ["a task of a state of submerge many"]}
    return ModelRecord(task.name, adapter=adapter, used=task.maps)


def _tensor_records(folder: Path) -> dict[str, TensorRecord]:
    """Return what `submerge.json` says of an adapter's tensors."""
    path = folder / f"{ADAPTER_STEM}.safetensors"
    with FileTable() as table:
        return {
            name: TensorRecord(
                entry.dtype,
                entry.shape,
                range_digest(table.source(entry), 0, entry.numel, entry.itemsize),
                file=path.name,
                treatment="merge",
            )
            for name, entry in read_header(path).entries.items()
        }


def check_out(out: Path, *, overwrite: bool) -> None:
    """Raise `RequestError` where an adapter must not be written: over anything but an adapter."""
    if problems := why_taken(out, overwrite=overwrite, replaceable=("adapter", ADAPTER_CONFIG.__eq__)):
        raise RequestError(problems)


def write_adapter(export: Export, out: Path, *, rank: int | None, overwrite: bool) -> ExportReport:
    """Write the merged updates as an adapter, into a folder that has its name when it is complete."""
    with writing(f"{out}: cannot be written"):
        check_out(out, overwrite=overwrite)
        place, unfinished = out.resolve(), unfinished_folder(out)
        _discard(unfinished)
        try:
            report = _write(export, unfinished, rank)
            export.describe(unfinished, "adapter")
            for path in unfinished.iterdir():
                sync_file(path)
            sync_folder(unfinished)
            give_name(unfinished, place, overwrite=overwrite)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return replace(report, out=out, scale=export.lpm.scale)


def _discard(unfinished: Path) -> None:
    """Remove what an export that was killed has left; raise `RequestError` for what no export wrote."""
    if not os.path.lexists(unfinished):
        return
    if not unfinished.is_dir() or not WRITTEN.issuperset(path.name for path in unfinished.iterdir()):
        what = "something of this name exists that no export wrote"
        raise RequestError(Problem(what, str(unfinished), "remove it, or choose another output"))
    shutil.rmtree(unfinished)


def _write(export: Export, folder: Path, rank: int | None) -> ExportReport:
    error = 0.0
    with AdapterWriter(folder) as writer:
        for merged in export.merge.merged():
            fit = factored(merged.update, rank)
            error = max(error, fit.error)
            if isinstance(fit.update, LowRank):
                b, a = fit.update.left.float(), fit.update.right.float()
                _check_finite(merged.name, b, a)
                left, right = (a.T, b.T) if merged.transposed else (b, a)
                writer.add(merged.spelled, left, right, transposed=merged.transposed)
        if not writer.rank:
            what = f"every merged update of {', '.join(export.tasks)} is zero"
            raise WorkError(f"{what} — look at the adapters, and at the scale")
        for name, values in export.saved() if export.gate is None else ():
            writer.save(name, values)
        largest, base = writer.rank, export.manifest.base
        writer.finish(base=base.model, base_revision=base.revision, task_type=export.merge.task_type)
    count = export.gate.count if export.gate else 0
    warnings = (*_left_out(export.merge.others), *export.merge.warnings, *export.warnings)
    return ExportReport(folder, "adapter", export.tasks, largest, error, count, warnings, export.weights)


def _check_finite(name: str, *factors: torch.Tensor) -> None:
    """Raise `WorkError` where factors have values that float32 cannot hold."""
    if not all(bool(factor.isfinite().all()) for factor in factors):
        raise WorkError(f"NaN or Inf in the update of {name} — look at the scale, and at the ridge")


def _left_out(others: Sequence[str]) -> tuple[str, ...]:
    """Return that an adapter leaves tensors as the base has them, if there are some."""
    if not others:
        return ()
    what = f"{len(others)} tensors that tasks change are no linear maps of the layers ({few(others)})"
    return (f"{what}: the adapter leaves them as the base's — write a checkpoint, which has their mean",)


def write_checkpoint(
    export: Export,
    out: Path,
    base: Checkpoint,
    *,
    rank: int | None,
    overwrite: bool,
    settings: Settings | None,
    dtype: str | None = None,
) -> ExportReport:
    """Write the base with the merged updates folded in, by the merge of one adapter.

    That adapter does not stay. What the folder says of itself is about the tasks, and complete when it is.
    Where tasks are whole checkpoints it has no factors, but the merged tensors themselves; and so it has
    where λ = 0, for no adapter is without an update, and of a base in float64, which factors are not.
    """
    if problems := why_taken(out, overwrite=overwrite):  # before all is computed
        raise RequestError(problems)
    dense = export.manifest.has_checkpoints or not export.lpm.scale or _is_double(base)
    with writing(f"{out}: cannot be written"), _beside(out.resolve()) as temporary:
        folder, adapter = temporary / MERGED, replace(export, gate=None)
        if dense:
            written = _write_tensors(adapter, folder, base, rank)
        else:
            written = write_adapter(adapter, folder, rank=rank, overwrite=False)
        recipe = {"merge_method": "cat", "base_model": base.label, "models": [{"model": str(written.out)}]}
        recipe |= {} if dtype is None else {"dtype": dtype}

        def describe(folder: Path, manifest: Manifest) -> None:
            export.describe(folder, "checkpoint", manifest)

        merge(recipe, out, overwrite=overwrite, settings=settings, add_files=describe)
    count = export.gate.count if export.gate else 0
    return replace(written, out=out, form="checkpoint", projectors=count)


@contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """Give a folder beside an output, where there is room for what becomes a part of it.

    Those that exports of the same output have left, which were killed, are removed.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    own = {LOCK, MERGED, MERGED + SUFFIX}
    for left in out.parent.glob(f"{escape(out.name)}{BESIDE}*"):
        if (left / LOCK).is_file() and own.issuperset(path.name for path in left.iterdir()):
            with suppress(RequestError, WorkError), locked(left):  # else another export runs
                shutil.rmtree(left)
    with (
        tempfile.TemporaryDirectory(prefix=out.name + BESIDE, dir=out.parent) as folder,
        locked(Path(folder)),
    ):
        yield Path(folder)


def _is_double(base: Checkpoint) -> bool:
    return any(entry.dtype == "F64" for entry in base.tensors.values())


def _write_tensors(export: Export, folder: Path, base: Checkpoint, rank: int | None) -> ExportReport:
    merged = MergedTensors(export.merge, base, rank)
    merged.write(folder, export.saved())
    return ExportReport(
        folder,
        "checkpoint",
        export.tasks,
        merged.largest,
        merged.error,
        warnings=(*export.merge.warnings, *export.warnings),
        weights=export.weights,
        scale=export.lpm.scale,
    )
