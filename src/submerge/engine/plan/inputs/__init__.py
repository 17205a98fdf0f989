"""The models of a merge, opened, and which of their names are one parameter."""

from submerge.engine.plan.inputs._copies import Copies, resolve_copies
from submerge.engine.plan.inputs._inputs import Inputs, Specialist, TokenizerSource
from submerge.engine.plan.inputs._models import open_models
from submerge.engine.plan.inputs._settings import Settings
from submerge.engine.plan.inputs._stored_digest import stored_digest, unchecked

__all__ = [
    "Copies",
    "Inputs",
    "Settings",
    "Specialist",
    "TokenizerSource",
    "open_models",
    "resolve_copies",
    "stored_digest",
    "unchecked",
]
