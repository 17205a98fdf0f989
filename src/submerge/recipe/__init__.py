"""What the user asks for: recipes read, checked in full, and resolved to a value for each tensor."""

from submerge.recipe._chat_templates import CHAT_TEMPLATES
from submerge.recipe._coefficients import (
    COEFFICIENTS,
    Coefficients,
    parse_coefficients,
    read_coefficients,
)
from submerge.recipe._coefficients import VERSION as COEFFICIENTS_VERSION
from submerge.recipe._data_spec import (
    COLUMNS,
    DATA_FORMATS,
    PACKINGS,
    DataSource,
    DataSpec,
    data_files,
    data_format,
    data_spec,
)
from submerge.recipe._documents import Documents, document_hint, load_documents
from submerge.recipe._load import load_recipe
from submerge.recipe._load_mixture import is_mixture, load_mixture
from submerge.recipe._mergekit import to_mergekit
from submerge.recipe._mergekit_moe import to_mergekit_moe
from submerge.recipe._mixture import Expert, MixtureRecipe
from submerge.recipe._modalities import ModalityTokens
from submerge.recipe._model_entry import ModelEntry, same_model
from submerge.recipe._new_tokens import NewTokens
from submerge.recipe._projector_mix import ProjectorMix
from submerge.recipe._recipe import Recipe
from submerge.recipe._resolve import Resolved, ResolvedValues, resolve, resolve_layers
from submerge.recipe._rules import Rule, Setting
from submerge.recipe._sections import OutputForm, Rules
from submerge.recipe._source import read_text
from submerge.recipe._stack import LayerSource, ModuleSlices, Slice
from submerge.recipe._task_folder import TaskFolder
from submerge.recipe._tokenizer_settings import TokenizerSettings, TokenRow

__all__ = [
    "CHAT_TEMPLATES",
    "COEFFICIENTS",
    "COEFFICIENTS_VERSION",
    "COLUMNS",
    "DATA_FORMATS",
    "PACKINGS",
    "Coefficients",
    "DataSource",
    "DataSpec",
    "Documents",
    "Expert",
    "LayerSource",
    "MixtureRecipe",
    "ModalityTokens",
    "ModelEntry",
    "ModuleSlices",
    "NewTokens",
    "OutputForm",
    "ProjectorMix",
    "Recipe",
    "Resolved",
    "ResolvedValues",
    "Rule",
    "Rules",
    "Setting",
    "Slice",
    "TaskFolder",
    "TokenRow",
    "TokenizerSettings",
    "data_files",
    "data_format",
    "data_spec",
    "document_hint",
    "is_mixture",
    "load_documents",
    "load_mixture",
    "load_recipe",
    "parse_coefficients",
    "read_coefficients",
    "read_text",
    "resolve",
    "resolve_layers",
    "same_model",
    "to_mergekit",
    "to_mergekit_moe",
]
