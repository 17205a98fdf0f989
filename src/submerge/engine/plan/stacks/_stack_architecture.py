"""Whether a stack of layers is a model of its class: what a layer holds may depend on its number."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from submerge.engine.plan.stacks._stack import StackPlan
from submerge.engine.plan.tensors import TensorPlan
from submerge.errors import Problem, few
from submerge.names import Loading, empty_model, layer_of, layer_stacks, loading, with_layer
from submerge.store import Checkpoint

__all__ = ["architecture_problems"]

_HINT = (
    "stack layers so that each number holds the kind of layer that it has there (every other one, say, or a "
    "dense one first)"
)


def architecture_problems(stack: StackPlan, tensors: Sequence[TensorPlan], where: str) -> list[Problem]:
    """Return what transformers would not load of a stack, or would look for in vain.

    A configuration may say by a layer's number whether it has experts, attention or a norm
    (`first_k_dense_replace`, `attn_layer_period`). Only what the reference itself loads counts. Nothing where
    transformers is not installed or does not know the class; nor is it asked, for it takes seconds to import,
    where all layers of the reference hold the same. `where` is the line of the stack.
    """
    reference = stack.originals.reference_model
    if _layers_are_alike(reference):
        return []
    before = empty_model(reference.config)
    if before is None or stack.config is None:
        return []
    after, name = empty_model(stack.config), type(before).__name__
    if after is None:
        what = f"transformers makes no {name} of the configuration of the stack"
        return [Problem(what, where, _HINT)]
    own = loading(before, reference.shapes)
    loaded = loading(after, {tensor.name: tensor.shape for tensor in tensors})
    if not own.views:  # a version of transformers that cannot be asked
        return []
    ignored = _in_layers(own.ignored)
    left = [tensor for tensor in loaded.ignored if _number_left_out(tensor) not in ignored]
    known = _in_layers(_missing(before, own))
    lacking = [parameter for parameter in _missing(after, loaded) if _number_left_out(parameter) not in known]
    parts = [f"has no place for {few(sorted(left))}"] if left else []
    parts += [f"lacks {few(sorted(lacking))}"] if lacking else []
    what = f"as a {name} the stack {' and '.join(parts)}"
    return [Problem(what, where, _HINT)] if parts else []


def _layers_are_alike(model: Checkpoint) -> bool:
    """Return whether all layers of each stack have tensors of the same names and shapes."""
    held: dict[str, dict[int, set[tuple[str, tuple[int, ...]]]]] = {
        stack: {} for stack in layer_stacks(model.tensors)
    }
    for name, entry in model.tensors.items():
        stack, number = layer_of(name) or ("", 0)
        if stack in held:
            held[stack].setdefault(number, set()).add((with_layer(name, stack, 0), entry.shape))
    return all(len(set(map(frozenset, layers.values()))) == 1 for layers in held.values())


def _missing(model: Any, loaded: Loading) -> Iterator[str]:
    return (name for name in model.state_dict() if name not in loaded.views)


def _in_layers(names: Iterable[str]) -> set[str]:
    return set(map(_number_left_out, names))


def _number_left_out(name: str) -> str:
    """Return a name without the number of its layer."""
    return re.sub(r"\.\d+\.", ".*.", name, count=1)
