"""The merge of a state's tasks as an adapter in PEFT's form, or folded into the base as a checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from submerge._version import __version__
from submerge.algebra import LowRank, factored
from submerge.continual._lpm import MergedMap
from submerge.continual._manifest import BaseRecord
from submerge.engine import Settings, merge
from submerge.errors import Problem, RequestError, WorkError
from submerge.store import AdapterWriter, sync_file, sync_folder

__all__ = ["ExportReport", "check_out", "write_adapter", "write_checkpoint"]

INCOMPLETE = ".incomplete"


@dataclass(frozen=True)
class ExportReport:
    """What was exported: the folder, its form, the tasks in it, and the rank of the adapter.

    `error` is ‖Δ − B A‖ / ‖Δ‖ of the linear map of which the rank that was asked for keeps least.
    """

    out: Path
    form: str
    tasks: tuple[str, ...]
    rank: int
    error: float


def check_out(out: Path, *, overwrite: bool) -> None:
    """Raise `RequestError` where an adapter must not be written: over anything but an adapter."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    hint = "choose another folder"
    if not overwrite:
        raise RequestError(
            Problem("the output exists and is not empty", str(out), f"{hint}, or allow --overwrite")
        )
    if not (out / "adapter_config.json").is_file():
        raise RequestError(Problem("the folder to replace holds no adapter", str(out), hint))


def write_adapter(
    out: Path,
    maps: Iterable[MergedMap],
    base: BaseRecord,
    tasks: tuple[str, ...],
    *,
    rank: int | None,
    task_type: str | None,
) -> ExportReport:
    """Write the merged updates as an adapter, into a folder that has its name when it is complete."""
    unfinished = out.with_name(out.name + INCOMPLETE)
    if unfinished.exists():
        raise RequestError(Problem("something of this name exists", str(unfinished), "remove it"))
    try:
        report = _write(unfinished, maps, base, tasks, rank, task_type)
        card = unfinished / "README.md"
        card.write_text(_card(out.name, base, tasks, adapter=True), encoding="utf-8")
        sync_file(card)
        sync_folder(unfinished)
        shutil.rmtree(out, ignore_errors=True)
        unfinished.rename(out)
    except OSError as error:
        raise WorkError(f"{out}: cannot be written ({error.strerror}) — free some space") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return replace(report, out=out)


def _write(
    folder: Path,
    maps: Iterable[MergedMap],
    base: BaseRecord,
    tasks: tuple[str, ...],
    rank: int | None,
    task_type: str | None,
) -> ExportReport:
    error = 0.0
    with AdapterWriter(folder) as writer:
        for merged in maps:
            fit = factored(merged.update, rank)
            error = max(error, fit.error)
            if isinstance(fit.update, LowRank):
                b, a = fit.update.left.float(), fit.update.right.float()
                left, right = (a.T, b.T) if merged.transposed else (b, a)
                writer.add(merged.spelled, left, right, transposed=merged.transposed)
        if not writer.rank:
            raise WorkError(f"{folder}: every merged update is zero — look at the adapters, and at the scale")
        largest = writer.rank
        writer.finish(base=base.model, base_revision=base.revision, task_type=task_type)
    return ExportReport(folder, "adapter", tasks, largest, error)


def write_checkpoint(
    out: Path,
    adapter: ExportReport,
    base: BaseRecord,
    place: str,
    *,
    overwrite: bool,
    settings: Settings | None,
) -> ExportReport:
    """Write the base, which lies at `place`, with an adapter folded in, by the merge of that one adapter.

    The adapter does not stay, so that the model card is about the tasks.
    """
    recipe = {"merge_method": "cat", "base_model": place, "models": [{"model": str(adapter.out)}]}
    report = merge(recipe, out, overwrite=overwrite, settings=settings)
    card = _card(report.out.name, base, adapter.tasks, adapter=False)
    (report.out / "README.md").write_text(card, encoding="utf-8")
    return replace(adapter, out=report.out, form="checkpoint")


def _card(name: str, base: BaseRecord, tasks: tuple[str, ...], *, adapter: bool) -> str:
    """Return the text of README.md, with what the Hub reads of it."""
    library, kind, tags = ("peft", "adapter", ["lora"]) if adapter else ("transformers", "merge", [])
    front = {"library_name": library, "tags": ["merge", "submerge", *tags]}
    if base.revision:
        front = {"base_model": [base.model], "base_model_relation": kind, **front}
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False).rstrip(),
        "---",
        f"# {name}",
        "",
        f"Merged with Submerge {__version__}, without training, by least squares over the tasks' inputs "
        "(LPM, arXiv 2604.14016).",
        "",
        f"Base: `{base.spec}`",
        "",
        "Tasks:",
        "",
        *(f"* `{task}`" for task in tasks),
        "",
    ]
    return "\n".join(lines)
