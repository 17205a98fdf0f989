"""Results of documents that need no folder: other documents merge them as they read them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from submerge.engine.output import count_passes, fingerprint, write_checkpoint_files
from submerge.engine.plan import (
    MergePlan,
    can_be_virtual,
    planned_checkpoint,
    reads_values_alone,
    virtual_model,
)
from submerge.engine.work import merged_tensors
from submerge.errors import writing
from submerge.recipe import Documents
from submerge.store import Checkpoint, open_tokenizer, read_json

__all__ = ["virtual_checkpoint", "virtual_reads"]


def virtual_reads(documents: Documents, plans: Mapping[str, MergePlan]) -> dict[str, int]:
    """Return the documents whose results need no folder, and how often each result is read.

    A result of W bytes, for which S bytes are read once, and which others read P times, moves P S bytes where
    it is merged whenever it is read, and S + W + P W bytes with a folder: it gets one where that is less. The
    reads of a document that needs no folder itself count as often as it is read.
    """
    reads: dict[str, int] = {}
    if documents.result is None:  # all results are wanted
        return reads
    for recipe in reversed(documents.needed[:-1]):
        plan = plans.get(recipe.name)
        users = [user.name for user in documents.needed if recipe.name in documents.uses[user.name]]
        if plan is None or not can_be_virtual(plan) or not all(_takes_values(plans.get(u)) for u in users):
            continue
        times = sum(reads.get(user, 0) or count_passes(plans[user]) for user in users)
        folder = plan.bytes_read + (1 + times) * plan.bytes_written
        if times * plan.bytes_read <= folder:
            reads[recipe.name] = times
    return reads


def _takes_values(plan: MergePlan | None) -> bool:
    return plan is not None and reads_values_alone(plan)


def virtual_checkpoint(plan: MergePlan, name: str, folder: Path) -> Checkpoint:
    """Return the result of a plan as a model that is merged as it is read.

    Its folder is made anew, with all but weights. Raises `WorkError` where that cannot be written.
    """
    _write_folder(plan, folder)
    planned, beside = planned_checkpoint(plan, name), open_tokenizer(str(folder), root=folder)
    config = folder / "config.json"
    assert planned is not None  # of an adapter nothing is virtual
    return replace(
        planned,
        path=folder,
        tensors={n: replace(entry, file=None, offset=0) for n, entry in planned.tensors.items()},
        shards={},
        config=read_json(config) if config.is_file() else None,
        side_files=beside.side_files,
        links=beside.links,
        pending=False,
        given_tokenizer=None,
        computed=merged_tensors(plan),
        virtual=virtual_model(plan, fingerprint(plan)),
    )


def _write_folder(plan: MergePlan, folder: Path) -> None:
    with writing(f"{folder}: cannot be written"):
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        write_checkpoint_files(plan, folder)
