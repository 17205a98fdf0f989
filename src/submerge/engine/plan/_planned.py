"""The result of a merge before it is run, as a model that other merges can be planned with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from submerge.engine.plan._plan import MergePlan
from submerge.engine.plan._virtual import virtual_model
from submerge.store import Checkpoint, untied

__all__ = ["planned_checkpoint"]


def planned_checkpoint(plan: MergePlan, name: str) -> Checkpoint | None:
    """Return the checkpoint that a plan will write: names, types and shapes are known, values are not there.

    None comes back for an adapter, whose tensors the merge decides on, and for a vocabulary of several
    models, whose tokenizer is written by the merge.
    """
    if plan.recipe.output.form == "adapter" or (plan.tokens and plan.tokens.vocabulary):
        return None
    reference = plan.inputs.reference_model
    config = plan.config or reference.config
    virtual = virtual_model(plan) if plan.virtual_reads else None
    return Checkpoint(
        label=name,
        path=reference.path,
        revision=None,
        tensors={tensor: replace(e, file=Path(name) / str(e.file)) for tensor, e in plan.entries.items()},
        shards={} if virtual else {tensor: str(entry.file) for tensor, entry in plan.entries.items()},
        config=(untied(config) if plan.unties else dict(config)) if config else None,
        side_files=reference.side_files,
        links=reference.links,
        pending=True,
        given_tokenizer=plan.tokens.tokenizer if plan.tokens else None,
        virtual=virtual,
    )
