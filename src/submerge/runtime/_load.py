"""`submerge.load`: a merged folder as a transformers model that routes."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from submerge.deferred import quietly, required
from submerge.errors import Problem, RequestError, few
from submerge.methods import METHODS
from submerge.methods.mass import PRESETS
from submerge.runtime._attach import attach
from submerge.runtime._cache import Recent
from submerge.runtime._folder import Folder, open_folder
from submerge.runtime._gate import Gate
from submerge.runtime._model import routed_class
from submerge.runtime._router import Router
from submerge.serving._clip import as_linear, is_linear, is_texts, text_classifier
from submerge.store import loaded_names

__all__ = ["architectures", "load"]

CACHE = 256 << 20
"""Bytes of cores and parameters of recent sets of tasks that are held."""
AUTO = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "FEATURE_EXTRACTION": "AutoModel",
}
"""What PEFT's task types mean to transformers."""


def load(
    folder: str | Path,
    *,
    features: bool = False,
    architecture: str | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    cache: int = CACHE,
    **settings: Any,
) -> Any:
    """Return the transformers model of a folder whose method keeps a gate, ready to answer.

    `model(**inputs)` finds the tasks of each input and runs it with their updates, and with the head of the
    first of them; the output has `tasks`, `coefficients` and `routing` besides, and of classifiers `labels`,
    the names of the classes. `model.route(**inputs)` only finds the tasks. `task=`, `group=` and `form=` go
    to either, and to `generate`, which routes once, on the prompt. The model is for use, not for training.

    Args:
        folder: what `submerge merge` wrote.
        features: True for the model without the tasks' heads, which returns hidden states.
        architecture: the class of transformers to load, where the tasks do not name one.
        dtype: of the model; that of the folder by default.
        device: of the model; the CPU by default.
        cache: bytes of merged cores that are held for sets of tasks that come again.
        **settings: options of the gate, in the place of the recipe's: `select="threshold"`.

    Raises:
        RequestError: there is no gate, the bank is damaged, or the tasks' models do not fit together.

    Examples:
        >>> import torch
        >>> import submerge
        >>> models = [{"model": "chat"}, {"model": "code"}]
        >>> recipe = {"merge_method": "mass", "base_model": "base", "models": models}
        >>> report = submerge.merge(recipe, "served")
        >>> model = submerge.load("served")
        >>> out = model(input_ids=torch.tensor([[3, 14, 15]]), task="code")
        >>> out.logits.shape, out.tasks
        (torch.Size([1, 3, 256]), ['code'])
    """
    transformers = required("transformers", "submerge.load needs")
    required("transformers.conversion_mapping", "submerge.load needs")  # new in its version 5
    opened = _linear(_with_settings(open_folder(Path(folder)), settings))
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    wanted = any(opened.heads) and not features
    kind, partial = _kind(transformers, opened, config, architecture, wanted)
    sizes = _sizes(opened, wanted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = _pretrained(transformers, routed_class(kind), opened.path, dtype, sizes)
    gate = Gate(Recent(cache))
    names = loaded_names(model, [*opened.factors, *opened.wholes, *{n for h in opened.heads for n in h}])
    attached = attach(model, opened, gate, names, heads=wanted, partial=partial)
    model.requires_grad_(False).eval()
    images = model.main_input_name == "pixel_values"
    pooling = {
        "auto": "tokens" if images else "mean",
        "paper": "cls" if images else "mean",
    }.get(opened.settings["pooling"], opened.settings["pooling"])
    score = opened.settings["score"]
    score = ("leading" if opened.low_rank else "residual") if score == "auto" else score
    settings = {**opened.settings, "pooling": pooling, "score": score}
    model.router = Router(opened.tasks, settings, gate, attached)
    return model if device is None else model.to(device)


def _with_settings(folder: Folder, given: dict[str, Any]) -> Folder:
    """Return the folder with the caller's settings, checked as a recipe's are."""
    method = METHODS["mass"]
    problems: list[Problem] = []
    defaults = {o.name: o.default for o in method.options if o.single and o.scope == "shared"}
    found = defaults | dict(folder.settings)
    fixed = ("fixed", "scale", "others")  # the bank and the checkpoint were made with these
    if given.get("preset") in PRESETS:  # all that it says, whatever the recipe's was
        made_with = {name: found[name] for name in fixed}
        found |= {**defaults, **PRESETS[given["preset"]], **made_with}
    for name, value in given.items():
        option = method.option(name)
        if option is None or not option.single or option.name in fixed or option.scope == "model":
            changeable = [o.name for o in method.options if o.single and o.name not in fixed]
            problems.append(
                Problem(
                    f"there is no setting {name!r} of the gate", "load", f"there are {few(changeable, 20)}"
                )
            )
            continue
        try:
            found[option.name] = option.check(value)
        except ValueError as error:
            problems.append(Problem(str(error), "load"))
    if problems:
        raise RequestError(problems)
    return dataclasses.replace(folder, settings=found)


def _sizes(folder: Folder, heads: bool) -> dict[str, int]:
    """Return what the model's configuration must say for the heads to have a place: outputs, and inputs."""
    widths = [tensor.shape[0] for head in folder.heads for tensor in head.values() if tensor.ndim]
    found = {"num_labels": max(widths)} if heads and widths else {}
    linear = [head for head in folder.heads if is_linear(head)]
    return found | ({"projection_dim": next(iter(linear[0].values())).shape[1]} if linear else {})


def _kind(transformers: Any, folder: Folder, config: Any, asked: str | None, heads: bool) -> tuple[Any, bool]:
    """Return the class to load, and whether it is another one than the checkpoint's own."""
    own = (config.architectures or [""])[0]
    if asked is None and any(map(is_linear, folder.heads)):
        vision: Any = transformers.CLIPVisionModelWithProjection
        return (text_classifier() if heads else vision), vision.__name__ != own
    if asked is not None:
        name = asked
    elif heads:
        name = _of_tasks(folder)
    elif any(folder.heads):
        name = "AutoModel"
    else:
        name = own
    found = getattr(transformers, name, None)
    if found is None:
        what = f"transformers has no architecture {name!r}" if name else "config.json names no architecture"
        raise RequestError(Problem(what, str(folder.path), "name one: load(…, architecture=…)"))
    if hasattr(found, "_model_mapping"):  # one of its Auto classes
        found = found._model_mapping[type(config)]
        found = found[0] if isinstance(found, (tuple, list)) else found
    return found, found.__name__ != own


def _linear(folder: Folder) -> Folder:
    """Return the folder with heads of class texts as linear maps."""
    if not any(map(is_texts, folder.heads)):
        return folder
    if others := [n for n, head in zip(folder.names, folder.heads, strict=True) if not is_texts(head)]:
        what = f"heads are class texts, and those of {few(others)} are not"
        raise RequestError(Problem(what, str(folder.path), "give all tasks heads of one kind"))
    return dataclasses.replace(folder, heads=tuple(map(as_linear, folder.heads)))


def architectures(folder: Folder) -> tuple[tuple[str, Any], tuple[str, Any]]:
    """Return the architectures of the base and of the tasks: names, and models without values."""
    transformers = required("transformers", "the tasks' models need")
    config = transformers.AutoConfig.from_pretrained(folder.path, local_files_only=True)
    own = (config.architectures or ["AutoModel"])[0]
    base, _ = _kind(transformers, folder, config, own, heads=False)
    tasks, _ = _kind(transformers, folder, config, None, heads=any(folder.heads))
    with torch.device("meta"):
        return (base.__name__, base(config)), (tasks.__name__, tasks(config))


def _of_tasks(folder: Folder) -> str:
    """Return the architecture that all tasks name."""
    told = {
        task["name"]: (task.get("architectures") or [AUTO.get(task.get("task_type") or "", "")])[0]
        for task in folder.tasks
    }
    kinds = sorted(set(told.values()))
    if len(kinds) > 1 or not kinds[0]:
        shown = ", ".join(f"{name}: {kind or 'not said'}" for name, kind in list(told.items())[:5])
        what = f"the tasks' models are not of one architecture ({shown})"
        raise RequestError(
            Problem(what, str(folder.path), "name one: load(…, architecture=…), or features=True")
        )
    return str(kinds[0])


def _pretrained(transformers: Any, kind: Any, path: Path, dtype: Any, sizes: Mapping[str, int]) -> Any:
    """Return the model of the checkpoint; heads that it lacks are made, and replaced later."""
    with quietly(transformers.logging):
        return kind.from_pretrained(
            path, dtype=dtype or "auto", local_files_only=True, ignore_mismatched_sizes=True, **sizes
        )
