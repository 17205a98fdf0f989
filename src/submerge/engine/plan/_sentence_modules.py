"""What sentence-transformers puts behind a model: pooling, normalisation and others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from submerge.engine.plan.inputs import Inputs
from submerge.errors import few

__all__ = ["sentence_modules"]

_MODULES = "modules.json"
_SETTINGS = ("config_sentence_transformers.json", "sentence_bert_config.json")
"""Prompts, and the length at which texts are cut."""


def sentence_modules(inputs: Inputs) -> list[str]:
    """Return which models and adapters have other modules of sentence-transformers than the output will.

    The output has those of the reference's folder. Without any, sentence-transformers takes the mean of all
    tokens, whatever a model was trained with.
    """
    reference = inputs.reference_model
    theirs = _modules(reference.path)
    warnings = []
    for index in inputs.participants:
        model = inputs.models[index]
        folder = model.adapter.path if model.adapter else model.path
        own = _modules(folder)
        if own is None or own == theirs:
            continue
        files = sorted([*own, *(name for name in _SETTINGS if (folder / name).is_file())])
        has = "none" if theirs is None else f"those of {reference.label}, which are others"
        what = f"was saved by sentence-transformers with modules of its own, and the output has {has}"
        warnings.append(f"{model.label}: {what}: copy {few(files, 6)} of it into the output")
    return list(dict.fromkeys(warnings))


def _modules(folder: Path) -> dict[str, Any] | None:
    """Return the modules' configurations by the path that each is at, or None where there are no modules."""
    listed = _json(folder / _MODULES)
    if not isinstance(listed, list):
        return None
    paths = [str(module.get("path")) for module in listed if isinstance(module, dict) and module.get("path")]
    return {_MODULES: listed} | {path: _json(folder / path / "config.json") for path in paths}


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
