"""Tensors without values that note where their elements come from, for operations that move elements."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from submerge.names._view import View

__all__ = ["Placeholder"]


class Placeholder(torch.Tensor):
    """A tensor that stands for a view: whoever reorders, splits or joins it does so with the view.

    Programs that convert weights can so be asked what they would do, at no cost. Only operations that move
    elements are understood; all others raise `NotImplementedError`.
    """

    elements: View

    @staticmethod
    def __new__(cls, elements: View) -> Placeholder:
        """Return a tensor of the view's shape."""
        tensor = torch.empty(elements.shape, device="meta").as_subclass(cls)
        tensor.elements = elements
        return tensor

    def __init__(self, elements: View) -> None:
        """Do nothing: as with every tensor, `__new__` has made it."""

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Return what an operation of torch, called on placeholders, makes of their views.

        torch calls this in place of every function and method that takes a placeholder.
        """
        name = getattr(func, "__name__", "")
        if name in _QUERIES:
            with torch._C.DisableTorchFunctionSubclass():  # else the query would end up here again
                return func(*args, **(kwargs or {}))
        if name not in _MOVES:
            raise NotImplementedError(f"{name} changes values, or is not known to move them")
        first, *rest = args
        views = [t.elements for t in first] if isinstance(first, Sequence) else first.elements
        moved = _MOVES[name](views, *rest, **(kwargs or {}))
        return Placeholder(moved) if isinstance(moved, View) else tuple(map(Placeholder, moved))


_QUERIES = frozenset(("__get__", "size", "dim", "numel", "ndimension", "__len__", "stride", "is_contiguous"))
"""What only asks for a shape, which a tensor on the meta device has; attributes are read by `__get__`."""


def _dim(view: View, dim: int) -> int:
    return dim % len(view.shape)


def _cat(views: Sequence[View], dim: int = 0) -> View:
    return View.joined(views, _dim(views[0], dim))


def _stack(views: Sequence[View], dim: int = 0) -> View:
    dim %= len(views[0].shape) + 1
    return View.joined([view.unsqueeze(dim) for view in views], dim)


def _split(view: View, size: int | Sequence[int], dim: int = 0) -> list[View]:
    dim = _dim(view, dim)
    total = view.shape[dim]
    sizes = [min(size, total - start) for start in range(0, total, size)] if isinstance(size, int) else size
    if sum(sizes) != total:
        raise NotImplementedError(f"parts of {list(sizes)} are not {total}")
    return [view.narrow(dim, sum(sizes[:part]), length) for part, length in enumerate(sizes)]


def _chunk(view: View, chunks: int, dim: int = 0) -> list[View]:
    return _split(view, -(-view.shape[_dim(view, dim)] // chunks), dim)


def _unbind(view: View, dim: int = 0) -> list[View]:
    dim = _dim(view, dim)
    return [part.squeeze(dim) for part in _split(view, 1, dim)]


def _transpose(view: View, dim0: int, dim1: int) -> View:
    order = list(range(len(view.shape)))
    first, second = _dim(view, dim0), _dim(view, dim1)
    order[first], order[second] = second, first
    return view.permute(order)


def _reshape(view: View, *shape: Any) -> View:
    sizes = list(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else list(shape)
    if -1 in sizes:
        known = math.prod(n for n in sizes if n != -1)
        sizes[sizes.index(-1)] = view.numel // known if known else 0
    return view.reshape(tuple(sizes))


# by the names of torch's functions and methods, with torch's arguments
_MOVES: dict[str, Callable[..., View | Sequence[View]]] = {
    "cat": _cat,
    "concat": _cat,
    "stack": _stack,
    "split": _split,
    "chunk": _chunk,
    "unbind": _unbind,
    "transpose": _transpose,
    "t": lambda view: _transpose(view, 0, 1),
    "permute": lambda view, *order: view.permute(order[0] if isinstance(order[0], Sequence) else order),
    "reshape": _reshape,
    "view": _reshape,
    "squeeze": lambda view, dim: view.squeeze(_dim(view, dim)),
    "unsqueeze": lambda view, dim: view.unsqueeze(dim % (len(view.shape) + 1)),
    "contiguous": lambda view: view,
    "clone": lambda view: view,
    "detach": lambda view: view,
}
