"""Projectors whose outputs are mixed: whose they are, and by which prototypes."""

from submerge.engine.plan.projectors._describe_projectors import describe_projectors, projector_facts
from submerge.engine.plan.projectors._projector_score import (
    MUCH_OVERLAP,
    TaskStatistics,
    bank_rows,
    choose_score,
    overlaps_of,
)
from submerge.engine.plan.projectors._projectors import ProjectorPlan, plan_projectors
from submerge.engine.plan.projectors._prototypes import prototype_bytes

__all__ = [
    "MUCH_OVERLAP",
    "ProjectorPlan",
    "TaskStatistics",
    "bank_rows",
    "choose_score",
    "describe_projectors",
    "overlaps_of",
    "plan_projectors",
    "projector_facts",
    "prototype_bytes",
]
