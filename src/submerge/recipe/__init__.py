"""What the user asks for: recipes read, checked whole, and resolved to a value for each tensor."""

from submerge.recipe._load import load_recipe
from submerge.recipe._mergekit import to_mergekit
from submerge.recipe._recipe import ModelEntry, OutputForm, Recipe, Rules, same_model
from submerge.recipe._setting import Rule, Setting
from submerge.recipe._settings import Resolved, ResolvedValues, resolve

__all__ = [
    "ModelEntry",
    "OutputForm",
    "Recipe",
    "Resolved",
    "ResolvedValues",
    "Rule",
    "Rules",
    "Setting",
    "load_recipe",
    "resolve",
    "same_model",
    "to_mergekit",
]
