"""Which class of transformers a folder is loaded as: the checkpoint's own, or that of the tasks' heads."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from submerge.deferred import required
from submerge.errors import Problem, RequestError, few
from submerge.serving._clip import as_linear, is_linear, is_texts, text_classifier
from submerge.serving._folder import Folder
from submerge.store.adapter import AUTO_CLASSES

__all__ = ["architectures", "head_sizes", "model_class", "with_linear_heads"]

LANGUAGE_MODELS = {"modality": "AutoModelForCausalLM"}
"""What the folder of a gate is where its configuration names no architecture."""


def model_class(
    transformers: Any, folder: Folder, config: Any, asked: str | None, *, heads: bool
) -> tuple[Any, bool]:
    """Return the class to load, and whether it is another one than the checkpoint's own.

    It is the one that was `asked` for, else that of the tasks where the model has their `heads`.
    """
    own = (config.architectures or [""])[0]
    if asked is None and any(map(is_linear, folder.heads)):
        vision: Any = transformers.CLIPVisionModelWithProjection
        return (text_classifier() if heads else vision), vision.__name__ != own
    if asked is not None:
        name = asked
    elif heads:
        name = _of_tasks(folder)
    else:
        name = "AutoModel" if any(folder.heads) else own or LANGUAGE_MODELS.get(folder.method, "")
    kind = getattr(transformers, name, None)
    if kind is None:
        what = f"transformers has no architecture {name!r}" if name else "config.json names no architecture"
        raise RequestError(Problem(what, str(folder.path), "name one: load(…, architecture=…)"))
    if hasattr(kind, "_model_mapping"):  # one of its Auto classes
        kind = kind._model_mapping[type(config)]
        kind = kind[0] if isinstance(kind, (tuple, list)) else kind
    return kind, kind.__name__ != own


def _of_tasks(folder: Folder) -> str:
    """Return the architecture that all tasks name."""
    named = {
        task["name"]: (task.get("architectures") or [AUTO_CLASSES.get(task.get("task_type") or "", "")])[0]
        for task in folder.tasks
    }
    kinds = sorted(set(named.values()))
    if len(kinds) > 1 or not kinds[0]:
        shown = ", ".join(f"{name}: {kind or 'not said'}" for name, kind in list(named.items())[:5])
        what = f"the tasks' models are not of one architecture ({shown})"
        raise RequestError(
            Problem(what, str(folder.path), "name one: load(…, architecture=…), or features=True")
        )
    return str(kinds[0])


def head_sizes(folder: Folder, *, heads: bool) -> dict[str, int]:
    """Return what the model's configuration must say for the heads to have a place: outputs, and inputs."""
    widths = [tensor.shape[0] for head in folder.heads for tensor in head.values() if tensor.ndim]
    sizes = {"num_labels": max(widths)} if heads and widths else {}
    linear = [head for head in folder.heads if is_linear(head)]
    return sizes | ({"projection_dim": next(iter(linear[0].values())).shape[1]} if linear else {})


def with_linear_heads(folder: Folder) -> Folder:
    """Return the folder with heads of class texts as linear maps."""
    if not any(map(is_texts, folder.heads)):
        return folder
    if others := [n for n, head in zip(folder.names, folder.heads, strict=True) if not is_texts(head)]:
        what = f"heads are class texts, and those of {few(others)} are not"
        raise RequestError(Problem(what, str(folder.path), "give all tasks heads of one kind"))
    return dataclasses.replace(folder, heads=tuple(map(as_linear, folder.heads)))


def architectures(folder: Folder) -> tuple[tuple[str, Any], tuple[str, Any]]:
    """Return the architectures of the base and of the tasks: names, and models without values.

    Examples:
        >>> import submerge
        >>> models = [{"model": "chat"}, {"model": "code"}]
        >>> recipe = {"merge_method": "mass", "base_model": "base", "models": models}
        >>> report = submerge.merge(recipe, "served")
        >>> from pathlib import Path
        >>> from submerge.serving import architectures, open_folder
        >>> [name for name, model in architectures(open_folder(Path("served")))]
        ['LlamaForCausalLM', 'LlamaForCausalLM']
    """
    transformers = required("transformers", "the tasks' models need")
    config = transformers.AutoConfig.from_pretrained(folder.path, local_files_only=True)
    own = (config.architectures or ["AutoModel"])[0]
    base, _ = model_class(transformers, folder, config, own, heads=False)
    tasks, _ = model_class(transformers, folder, config, None, heads=any(folder.heads))
    with torch.device("meta"):
        return (base.__name__, base(config)), (tasks.__name__, tasks(config))
