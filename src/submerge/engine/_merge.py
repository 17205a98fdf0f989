"""A merge from a recipe to a folder."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from submerge.arguments import checked
from submerge.deferred import torch
from submerge.device import check_device
from submerge.engine._calibrate import calibrated, calibration_report
from submerge.engine._moments import with_moments
from submerge.engine._prototypes import with_prototypes
from submerge.engine.output import (
    TARGETS,
    MergeReport,
    Output,
    OutputTarget,
    Progress,
    Run,
    check_target,
)
from submerge.engine.plan import MergePlan, Settings, make_plan
from submerge.engine.work import Meter, single_threaded
from submerge.process import peak_resident
from submerge.recipe import Recipe
from submerge.store import Manifest

if TYPE_CHECKING:
    from submerge.calibrate import Step

__all__ = ["merge"]


@checked
def merge(
    recipe: str | Path | Mapping[str, Any] | Recipe | MergePlan,
    out: str | Path,
    *,
    settings: Settings | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Callable[[Progress], None] = lambda _: None,
    calibration_progress: Callable[[Step], None] | None = None,
    add_files: Callable[[Path, Manifest], None] | None = None,
) -> MergeReport:
    """Merge by `recipe` into the folder `out`, an ordinary Hugging Face folder; return the report.

    A recipe whose weights are to be learned from data is calibrated first. `coefficients.json` in the folder
    has them: another recipe can name that file. Second moments that a recipe's method needs are collected
    into the folder `OUT.moments` beside it, which another recipe can name as its `moments`; prototypes by
    which projectors are mixed go into `OUT.prototypes`.

    Args:
        recipe: a path, YAML text (with a newline), a mapping, a `Recipe`, or a `MergePlan`.
        out: the folder to make. It is built as `OUT.incomplete` and renamed when it is complete.
        settings: how to run (ignored for a `MergePlan`, which has its own).
        resume: go on from what an interrupted run of the same merge left.
        overwrite: replace a folder that is not empty.
        progress: called about ten times a second.
        calibration_progress: called after each step of calibration, and each batch of a pass over data.
        add_files: called with the folder, before it has its name, and with what its `submerge.json` says:
            what it writes there, or over what is there, is complete when the folder is.

    Raises:
        RequestError: the recipe, the inputs or `out` are not right; nothing was written.
        WorkError: the disk, a file or the values failed; `out` is as it was before.

    Examples:
        >>> import submerge
        >>> settings = submerge.Settings(threads=2)
        >>> report = submerge.merge("recipe.yaml", "merged", settings=settings)
        >>> report.out.name, report.tensors
        ('merged', {'merge': 39})
    """
    begun = time.perf_counter()
    plan = recipe if isinstance(recipe, MergePlan) else make_plan(recipe, settings)
    if plan.pending:  # everything was checked by the headers: now the weights are worth their download
        plan = make_plan(plan.recipe, plan.settings, download=True)
    device = check_device(plan.settings.device)
    out = Path(out)
    check_target(plan, out, overwrite)
    learns = plan.recipe.calibrates
    plan = _completed(plan, out, resume=resume, progress=calibration_progress)
    output = Output(plan, out, resume=resume, overwrite=overwrite)
    target = TARGETS[plan.recipe.output.form](plan, output, Meter())
    run = Run(target)
    try:
        run.execute(device, progress)
        output.finish(run.manifest(), target.write_side_files, add_files)
    finally:
        output.journal.close()
    report = _report(target, run, time.perf_counter() - begun)
    return replace(report, calibration=calibration_report(plan)) if learns else report


def _completed(
    plan: MergePlan, out: Path, *, resume: bool, progress: Callable[[Step], None] | None
) -> MergePlan:
    """Return the plan with what is computed before: prototypes, weights, moments, rows of a donor."""
    if plan.recipe.makes_prototypes:
        plan = with_prototypes(plan, out, resume=resume, progress=progress)
    if plan.recipe.calibrates:
        plan = calibrated(plan, out, resume=resume, progress=progress)
    if plan.recipe.collects_moments:
        plan = with_moments(plan, out, resume=resume, progress=progress)
    if plan.donor_rows is not None:  # before workers are forked, which inherit the rows
        torch.get_num_threads()  # torch's own threads can only be switched off where it is there
        with single_threaded:
            plan.donor_rows.approximate(plan.budget.workers)
    return plan


def _report(target: OutputTarget[Any], run: Run, seconds: float) -> MergeReport:
    """Return what a merge did and cost, without what calibration did before it."""
    plan, records = target.plan, run.records
    busy = max(1e-9, run.seconds * plan.budget.workers)
    return MergeReport(
        out=target.output.out,
        seconds=seconds,
        bytes_read=target.meter.read,
        bytes_written=target.bytes_written,
        reading=min(1.0, target.meter.reading / busy),
        writing=min(1.0, target.meter.writing / busy),
        peak_memory_bytes=max(peak_resident(), run.peak),
        workers=plan.budget.workers,
        tensors=dict(Counter(tensor.treatment for tensor in plan.tensors)),
        resumed=run.resumed,
        nonfinite=records.nonfinite(),
        differs=records.differs(),
        warnings=(*plan.warnings, *target.warnings(records)),
        figures=records.figures(),
        serve=target.serve,
    )
