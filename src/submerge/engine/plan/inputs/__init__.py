"""The models of a merge, opened, and which of their names are one parameter."""

from submerge.engine.plan.inputs._copies import Copies, resolve_copies
from submerge.engine.plan.inputs._inputs import Inputs, Specialist, TokenizerSource
from submerge.engine.plan.inputs._licences import common_licence, licence_warnings, stated_licences
from submerge.engine.plan.inputs._models import open_models
from submerge.engine.plan.inputs._settings import Settings
from submerge.engine.plan.inputs._stored_digest import stored_digest, unchecked

__all__ = [
    "Copies",
    "Inputs",
    "Settings",
    "Specialist",
    "TokenizerSource",
    "common_licence",
    "licence_warnings",
    "open_models",
    "resolve_copies",
    "stated_licences",
    "stored_digest",
    "unchecked",
]
