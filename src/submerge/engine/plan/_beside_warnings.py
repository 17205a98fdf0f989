"""What the files beside the weights tell: inputs that models were trained with otherwise, files left out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from submerge.engine.plan.inputs import Inputs
from submerge.errors import few
from submerge.store import Checkpoint, input_settings, left_out

__all__ = ["beside_warnings", "short"]

_FILES = {
    "modules.json": "pools texts as its modules.json says",
    "image_mean": "has the settings of an image processor",
    "sampling_rate": "has the settings of a feature extractor",
}
"""By a setting that one of them has, what a model says of its inputs, and the output's files do not."""
_WHOLE, _SHARDS = "model.safetensors", "model-[0-9]*-of-[0-9]*.safetensors"


def beside_warnings(inputs: Inputs) -> list[str]:
    """Return which models' inputs are made otherwise than the output's, and what is not copied into it."""
    if inputs.specialists or inputs.tokenizer is None:  # each keeps its processor; an adapter has no files
        return []
    base = inputs.reference_model
    theirs = _of_folder(base.path, base.config)
    warnings: list[str] = []
    for index in inputs.participants:
        model = inputs.models[index]
        own = _settings(model)
        unlike = [
            f"{key} {short(own[key])} and not {short(theirs.get(key, 'none'))}"
            for key in own
            if _differ(key, own, theirs)
        ]
        if unlike:
            what = f"it is used with {few(unlike)}, as the files beside its weights say"
            warnings.append(f"{model.label}: {what}; the output has those of {base.label}")
        alone = [what for key, what in _FILES.items() if key in own and key not in theirs]
        if alone:
            what = f"{' and '.join(alone)}, and {base.label} has no such files"
            warnings.append(f"{model.label}: {what}: nor has the output, unless you copy them")
    return [*dict.fromkeys(warnings), *_unread_shards(inputs), *_left_out(base)]


def _settings(model: Checkpoint) -> dict[str, Any]:
    """Return what a model's files say, and over that those of its adapter, which the output has none of."""
    own = _of_folder(model.path, model.config)
    return own | _of_folder(model.adapter.path, None) if model.adapter else own


def _of_folder(folder: Path, config: Mapping[str, Any] | None) -> dict[str, Any]:
    return input_settings(folder, config) if folder.is_dir() else {}


def _differ(key: str, own: dict[str, Any], theirs: dict[str, Any]) -> bool:
    """Return whether two models say different things; prompts are asked for where one of them has some."""
    if key == "prompts" and "modules.json" in theirs:
        return bool(own[key] != theirs.get(key))
    return key in theirs and own[key] != theirs[key]


def short(value: Any) -> str:
    """Return a value as text, cut where it is long."""
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _unread_shards(inputs: Inputs) -> list[str]:
    """Return which folders hold shards beside the one file that is read, which may be of another training."""
    warnings = []
    for model in inputs.involved.values():
        is_whole = model.path.is_dir() and [path.name for path in model.own_files] == [_WHOLE]
        shards = sorted(path.name for path in model.path.glob(_SHARDS)) if is_whole else []
        if shards:
            what = f"{_WHOLE} is read, as transformers does, and not the shards beside it ({few(shards)})"
            warnings.append(f"{model.label}: {what}: move away what is left from another training")
    return list(dict.fromkeys(warnings))


def _left_out(base: Checkpoint) -> list[str]:
    """Return which files of the output's model are not copied, though another reader of it may need them."""
    if not base.path.is_dir():
        return []
    names = [str(path) for path in left_out(base.path, base.own_files)]
    what = f"is not copied ({few(names)})" if len(names) == 1 else f"are not copied ({few(names)})"
    hint = "copy what the model is used with, or merge it by a recipe of its own"
    return [f"{base.label}: what else its folder has of weights {what}: {hint}"] if names else []
