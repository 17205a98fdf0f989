"""Inputs and outputs of models, whatever their nesting: some of their samples, in another order, joined."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch

__all__ = ["cut", "each", "is_plain", "joined", "leaves", "mapped", "reordered", "tensors"]

_Leaf = TypeVar("_Leaf")


def tensors(values: Any) -> list[torch.Tensor]:
    """Return all tensors in lists, tuples and mappings.

    Examples:
        >>> import torch
        >>> from submerge.gating import tensors
        >>> [x.item() for x in tensors({"a": torch.tensor(1), "b": [torch.tensor(2), "text"]})]
        [1, 2]
    """
    return leaves(values, torch.Tensor)


def leaves(values: Any, kind: type[_Leaf]) -> list[_Leaf]:
    """Return all objects of a kind in lists, tuples and mappings.

    Examples:
        >>> from submerge.gating import leaves
        >>> leaves({"a": 1, "b": [2, "text"]}, str)
        ['text']
    """
    if isinstance(values, kind):
        return [values]
    if isinstance(values, Mapping):
        values = list(values.values())
    return [x for value in values for x in leaves(value, kind)] if isinstance(values, (list, tuple)) else []


def each(values: Any, change: Callable[[Any], Any], kind: type[Any] = torch.Tensor) -> Any:
    """Return values with every tensor, or every object of another kind, changed, and all else as it is.

    Examples:
        >>> import torch
        >>> from submerge.gating import each
        >>> each({"a": torch.tensor(1), "b": ["text"]}, lambda x: x + 1)
        {'a': tensor(2), 'b': ['text']}
    """
    if isinstance(values, kind):
        return change(values)
    if isinstance(values, Mapping):
        return _like(values, {key: each(value, change, kind) for key, value in values.items()})
    if isinstance(values, (list, tuple)):
        return type(values)(each(value, change, kind) for value in values)
    return values


def mapped(values: Any, change: Callable[[torch.Tensor], torch.Tensor], rows: int) -> Any:
    """Return values with every tensor that has `rows` rows changed, and all else as it is."""
    return each(values, lambda x: change(x) if x.ndim and x.shape[0] == rows else x)


def is_plain(values: Any) -> bool:
    """Return whether values are tensors, numbers, texts and collections of those alone.

    What else a module may be given, such as a cache, has a state, and is not cut into samples.
    """
    if isinstance(values, Mapping):
        return all(map(is_plain, values.values()))
    if isinstance(values, (list, tuple)):
        return all(map(is_plain, values))
    return values is None or isinstance(values, (torch.Tensor, torch.dtype, torch.device, str, int, float))


def _like(values: Mapping[str, Any], items: dict[str, Any]) -> Any:
    return items if type(values) is dict else type(values)(**items)  # transformers' outputs


def cut(values: Any, at: slice, rows: int) -> Any:
    """Return values for some samples: tensors with `rows` rows are cut.

    Examples:
        >>> import torch
        >>> from submerge.gating import cut
        >>> cut({"ids": torch.arange(3), "scale": torch.ones(1)}, slice(1, 3), 3)
        {'ids': tensor([1, 2]), 'scale': tensor([1.])}
    """
    return mapped(values, lambda x: x[at], rows)


def reordered(values: Any, order: torch.Tensor, rows: int) -> Any:
    """Return values with samples in another order: row i is what was row order[i].

    Examples:
        >>> import torch
        >>> from submerge.gating import reordered
        >>> reordered([torch.tensor([10, 11, 12])], torch.tensor([2, 0, 1]), 3)
        [tensor([12, 10, 11])]
    """
    return mapped(values, lambda x: x[order.to(x.device)], rows)


def joined(results: Sequence[Any]) -> Any:
    """Return one value from those of several slices of a batch, in their order.

    Examples:
        >>> import torch
        >>> from submerge.gating import joined
        >>> joined([(torch.tensor([1]),), (torch.tensor([2, 3]),)])
        (tensor([1, 2, 3]),)
    """
    first = results[0]
    if len(results) == 1:
        return first
    if isinstance(first, torch.Tensor):
        return torch.cat(list(results)) if first.ndim else torch.stack(list(results)).mean()
    if isinstance(first, Mapping):
        return _like(first, {key: joined([one[key] for one in results]) for key in first})
    if isinstance(first, (list, tuple)):
        return type(first)(joined(parts) for parts in zip(*results, strict=True))
    return first
