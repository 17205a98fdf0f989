"""Mixtures of experts: their architectures, what their models must have, and where each tensor comes from."""

from submerge.engine.plan.mixtures._choose_form import choose_form
from submerge.engine.plan.mixtures._mixture_config import mixture_config
from submerge.engine.plan.mixtures._mixture_forms import DEEPSEEK, PROJECTIONS, MixtureForm
from submerge.engine.plan.mixtures._mixture_sources import (
    dense_name,
    is_feed_forward,
    source_problems,
    vocabulary_findings,
)
from submerge.engine.plan.mixtures._mixture_weights import MixtureWeights, Weight

__all__ = [
    "DEEPSEEK",
    "PROJECTIONS",
    "MixtureForm",
    "MixtureWeights",
    "Weight",
    "choose_form",
    "dense_name",
    "is_feed_forward",
    "mixture_config",
    "source_problems",
    "vocabulary_findings",
]
