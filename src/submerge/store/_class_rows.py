"""The rows of a classifier's head, one for each class: in the order that another model has the classes in."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from submerge.errors import few
from submerge.names import Block, View, contiguous_strides, layer_of
from submerge.store._checkpoint import Checkpoint

__all__ = ["class_names", "class_views"]

_HEAD = re.compile(
    r"(?:.+_)?(?:classifier|score|scores|head|heads|fc|logits_proj|logit|predictor)"
    r"|(?:.+_)?(?:classifier|head|heads)\.(?:out_proj|linear_out|out|fc|\d+)|sequence_summary\.summary"
)
"""Modules whose outputs are logits of classes: `classifier` (BERT, ViT), `score` (Llama), `fc` (ResNet)."""
_DEFAULT = re.compile(r"label_\d+")


def class_names(config: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Return the names of a configuration's classes in the order of the logits, in small letters.

    Empty where it names none of its own: `LABEL_0` is what transformers writes for want of a name.
    """
    table = (config or {}).get("id2label")
    if not isinstance(table, Mapping) or not all(str(key).isdecimal() for key in table):
        return ()
    named = {int(key): str(name).strip().casefold() for key, name in table.items()}
    names = tuple(named.get(place, "") for place in range(len(named)))
    unnamed = "" in names or len(set(names)) < len(names) or all(map(_DEFAULT.fullmatch, names))
    return () if unnamed else names


def class_views(model: Checkpoint, base: Checkpoint) -> tuple[dict[str, View], str]:
    """Return a model's class rows as the base's classes follow each other, and what is to be said of them.

    Both configurations have to name their classes. Where they name other ones the rows stay as they are, and
    that is said. What has a row for each class is told by its name and its length. An adapter has the
    classes of its model, whose rows stay.
    """
    own, theirs = class_names(model.config), class_names(base.config)
    if not own or not theirs or own == theirs or len(own) != len(theirs):
        return {}, ""
    heads = [name for name in base.tensors if _has_classes(model, base, name, len(own))]
    if not heads:
        return {}, ""
    if set(own) != set(theirs) or model.adapter is not None:
        shown = f"({few(own)}; there {few(theirs)})"
        what = f"its classes are not those of {base.label} {shown}"
        return {}, f"{model.label}: {what}, and the rows of {few(heads)} are merged by place"
    rows = [own.index(name) for name in theirs]
    views = {name: _of_rows(name, model.tensors[name].shape, rows) for name in heads}
    what = f"its classes have another order than those of {base.label} ({few(own)}; there {few(theirs)})"
    return views, f"{model.label}: {what}; the rows of {few(heads)} are taken by class"


def _has_classes(model: Checkpoint, base: Checkpoint, name: str, count: int) -> bool:
    """Return whether a tensor of both models has a row for each of so many classes."""
    module, _, last = name.rpartition(".")
    parts = module.split(".")
    is_head = _HEAD.fullmatch(parts[-1]) or _HEAD.fullmatch(".".join(parts[-2:]))
    if not is_head or last not in ("weight", "bias") or name not in model.tensors:
        return False
    in_layers = layer_of(".".join(parts[:-1]) if parts[-1].isdecimal() else module) is not None
    shapes = {base.tensors[name].shape, model.tensors[name].shape}
    return not in_layers and len(shapes) == 1 and next(iter(shapes))[:1] == (count,)


def _of_rows(name: str, shape: tuple[int, ...], rows: Sequence[int]) -> View:
    """Return a view of a tensor with its rows in another order."""
    total, width, strides = math.prod(shape), math.prod(shape[1:]), contiguous_strides(shape)
    rest = (0,) * (len(shape) - 1)
    return View(
        shape,
        tuple(
            Block(name, total, (place, *rest), (1, *shape[1:]), row * width, strides)
            for place, row in enumerate(rows)
        ),
    )
