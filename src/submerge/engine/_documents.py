"""Several recipes of one file: planned all together, and merged one after another or in one go."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from submerge._version import __version__
from submerge.engine._gates import with_gates
from submerge.engine._merge import merge
from submerge.engine._virtual import virtual_checkpoint, virtual_reads
from submerge.engine.output import MergeReport, Progress, check_target, fingerprint
from submerge.engine.plan import (
    MergePlan,
    Settings,
    can_be_virtual,
    make_plan,
    plan_mixture,
    planned_checkpoint,
)
from submerge.errors import Problem, RequestError, writing
from submerge.recipe import Documents, MixtureRecipe, Recipe
from submerge.store import MANIFEST, Checkpoint, strict_json, whole_file

if TYPE_CHECKING:
    from submerge.calibrate import Step

__all__ = ["merge_documents", "plan_documents"]

PARTS = ".parts"
RECORD = "parts.json"
"""In a folder of several results: from what each that is there was merged."""


def plan_documents(
    documents: Documents, settings: Settings | None = None, *, keep_parts: bool = False
) -> dict[str, MergePlan]:
    """Return the plan of each document by its name, in their order, before any of them is merged.

    A document that merges the result of another is planned with the names, types and shapes that this will
    have. Where these are not known before the merge (`planned_checkpoint`), it has no plan yet. Results that
    need no folder (`virtual_reads`) are planned as such, unless parts are to be kept, or memory does not
    hold what reading them takes. Raises `RequestError` with the problems of all documents but those that need
    one with problems.
    """
    plans = _planned(documents, settings, {})
    reads = {} if keep_parts or len(plans) < 2 else virtual_reads(documents, plans)
    try:
        return _planned(documents, settings, reads) if reads else plans
    except RequestError:  # with folders all was right: not even one worker fits
        return plans


def _planned(
    documents: Documents, settings: Settings | None, reads: Mapping[str, int]
) -> dict[str, MergePlan]:
    """Return the plans, where those results need no folder that have a number of `reads`."""
    plans: dict[str, MergePlan] = {}
    problems: list[Problem] = []
    for recipe in documents.recipes:
        uses = documents.uses[recipe.name]
        known = {name: planned_checkpoint(plans[name], name) for name in uses if name in plans}
        parts = {name: planned for name, planned in known.items() if planned is not None}
        if len(parts) < len(uses):
            continue
        try:
            plan = _plan(replace(recipe, parts=parts), settings)
            plans[recipe.name] = replace(plan, virtual_reads=reads.get(recipe.name, 0))
        except RequestError as error:
            problems += error.problems
    if problems:
        raise RequestError(problems)
    return plans


def merge_documents(
    documents: Documents,
    out: str | Path,
    *,
    settings: Settings | None = None,
    resume: bool = False,
    overwrite: bool = False,
    keep_parts: bool = False,
    started: Callable[[str, MergePlan | None], None] = lambda name, plan: None,
    progress: Callable[[Progress], None] = lambda _: None,
    calibration_progress: Callable[[Step], None] | None = None,
) -> dict[str, MergeReport]:
    """Merge by each of several documents; return the report of each that was merged now, by its name.

    The result of the document without a name is the folder `out`. Those of others lie in `OUT.parts` until
    it is complete, or are merged whenever others read them, where that moves fewer bytes; the bytes of `out`
    are the same. Where all documents have names, `out` is a folder with a folder for each.

    Args:
        documents: from `recipe.load_documents`.
        out: the folder to make.
        settings: how to run.
        resume: take the results that an interrupted run has finished, if they would be the same, and go on.
        overwrite: replace a folder that is not empty.
        keep_parts: write all results, those that nothing needs, too, and leave them in `OUT.parts`.
        started: called before each document's merge with its name and plan; without a plan for a result that
            is there from an interrupted run. Of a plan with `virtual_reads` nothing is merged now.
        progress: called about ten times a second.
        calibration_progress: called after each step of calibration.

    Raises:
        RequestError: a document, an input or `out` is not right; nothing was written, but for the results
            that a document without a plan needs.
        WorkError: the disk, a file or the values failed; finished parts stay for `resume`.
    """
    out = Path(out)
    plans = plan_documents(documents, settings, keep_parts=keep_parts)
    result = documents.result
    for plan in plans.values() if result is not None else ():
        check_target(plan, out, overwrite)
    named = {name: plan for name, plan in plans.items() if result is None or name != result.name}
    parts = _NamedResults(out, named, temporary=result is not None, resume=resume, overwrite=overwrite)
    how: dict[str, Any] = {
        "resume": resume,
        "progress": progress,
        "calibration_progress": calibration_progress,
    }
    reports: dict[str, MergeReport] = {}
    places: dict[str, Path | Checkpoint] = {}
    for recipe in documents.recipes if keep_parts else documents.needed:
        name = recipe.name
        if name in plans and not plans[name].pending:
            plan = plans[name]
        else:  # results of other documents are there now; or weights are worth their download
            plan = _planned_again(recipe, plans.get(name), documents.uses[name], places, settings)
        if recipe is result:
            started(name, plan)
            reports[name] = _make(plan, out, overwrite=overwrite, **how)
            continue
        made_from, places[name] = fingerprint(plan), parts.folder / name
        if parts.has(name, made_from):
            started(name, None)
            continue
        started(name, plan)
        place = parts.begun(name)
        if plan.virtual_reads:
            places[name] = virtual_checkpoint(plan, name, place)
            continue
        reports[name] = _make(plan, place, overwrite=place.exists(), **how)
        parts.note(name, made_from)
    if result is not None and named and not keep_parts:
        parts.remove()
    return reports


def _plan(recipe: Recipe, settings: Settings | None, *, download: bool = False) -> MergePlan:
    """Return the plan of one document: of a merge, or of a mixture of experts."""
    if isinstance(recipe, MixtureRecipe):
        return plan_mixture(recipe, settings, download=download)
    return make_plan(recipe, settings, download=download)


def _make(
    plan: MergePlan, out: Path, *, calibration_progress: Callable[[Step], None] | None, **how: Any
) -> MergeReport:
    """Make the result of one document."""
    plan = with_gates(plan, calibration_progress) if plan.mixture else plan
    return merge(plan, out, calibration_progress=calibration_progress, **how)


def _planned_again(
    recipe: Recipe,
    before: MergePlan | None,
    uses: Sequence[str],
    places: Mapping[str, Path | Checkpoint],
    settings: Settings | None,
) -> MergePlan:
    """Return the plan of a document whose models are there now; `before` is what was planned without them."""
    parts = {name: places[name] for name in uses}
    plan = _plan(replace(recipe, parts=parts), settings, download=True)
    if before is None or not before.virtual_reads or not can_be_virtual(plan):
        return plan
    return replace(plan, virtual_reads=before.virtual_reads)


class _NamedResults:
    """The folder with the results of named documents, and a record of what each was merged from.

    It is `OUT.parts` while they are needed, and then `temporary`; and `OUT` itself where all are wanted.
    """

    def __init__(
        self, out: Path, plans: Mapping[str, MergePlan], *, temporary: bool, resume: bool, overwrite: bool
    ) -> None:
        """Look at the folder; raise `RequestError` where it holds something else, or is one of the inputs."""
        out = out.resolve()
        self.folder = folder = out.with_name(out.name + PARTS) if temporary else out
        self.made_from: dict[str, str] = {}
        if not plans:
            return
        is_ours = (folder / RECORD).is_file()
        if is_ours and resume:
            self.made_from = self._read()
        elif is_ours and temporary:
            self.remove()
        elif folder.exists() and any(folder.iterdir()) and not (is_ours and overwrite):
            what = "the folder for the results of several documents is not empty"
            hint = "remove it, choose another output, or go on with --resume"
            raise RequestError(Problem(what, str(folder), hint))
        for name, plan in plans.items():
            check_target(plan, folder / name, overwrite=(folder / name).exists())

    def has(self, name: str, made_from: str) -> bool:
        """Return whether the result of a document is there that is merged from this."""
        return (
            self.made_from.get(name) == f"{__version__} {made_from}"
            and (self.folder / name / MANIFEST).is_file()
        )

    def begun(self, name: str) -> Path:
        """Return the folder for a result, after noting that what is there does not count."""
        self.made_from.pop(name, None)
        self._write()
        return self.folder / name

    def note(self, name: str, made_from: str) -> None:
        """Note that a result is complete, and what it was merged from."""
        self.made_from[name] = f"{__version__} {made_from}"
        self._write()

    def _read(self) -> dict[str, str]:
        """Return the record; an empty one where it is damaged, so that everything is merged again."""
        try:
            return dict(strict_json((self.folder / RECORD).read_bytes()))
        except (OSError, ValueError, TypeError):
            return {}

    def _write(self) -> None:
        with writing(f"{self.folder}: cannot be written"):
            self.folder.mkdir(parents=True, exist_ok=True)
            with whole_file(self.folder / RECORD) as unfinished:
                unfinished.write_text(json.dumps(self.made_from, indent=1), encoding="utf-8")

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
