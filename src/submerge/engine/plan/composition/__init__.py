"""Models that are composed of specialists: their own modules, and their placeholders."""

from submerge.engine.plan.composition._composition import (
    Composition,
    SpecialistPlan,
    plan_composition,
    stream_warnings,
)
from submerge.engine.plan.composition._describe_composition import composition_facts, describe_specialist

__all__ = [
    "Composition",
    "SpecialistPlan",
    "composition_facts",
    "describe_specialist",
    "plan_composition",
    "stream_warnings",
]
