"""Parameters that are not read by their own module alone.

A few modules compute with a parameter of a module inside them, which they do not call for it: the experts
of DBRX slice `self.mlp.w1`, Mamba multiplies by `self.conv1d.weight`, and JetMoE calls other methods of its
experts than forward. What the module inside does when it is called then says nothing of that parameter.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any

from torch import nn

__all__ = ["RESIZING", "reader_of"]

DEPTH = 3
"""The modules around one that are looked at, from the inside."""
_ABOUT = frozenset({"dtype", "device", "shape", "ndim", "size", "dim", "numel", "is_cuda", "requires_grad"})
"""What is asked of a parameter without its values."""
RESIZING = "interpolate_pos_encoding"
"""What asks models of images to take images of another size than their own: they read the table of positions
then, which they call otherwise."""


def reader_of(model: nn.Module, path: str, name: str, *, resizing: bool = False) -> str | None:
    """Return the module around another that computes with a parameter of it, without a call of its forward.

    None stands for none. It is looked for in the source text of the classes; without it nothing is found.
    What is read for images of another size alone counts with `resizing`.

    Args:
        model: that both are in.
        path: of the module that has the parameter.
        name: of the parameter in it.

    Examples:
        >>> from torch import nn
        >>> from submerge.gating import reader_of
        >>> reader_of(nn.Sequential(nn.Linear(2, 2)), "0", "weight") is None  # but its own
        True
    """
    inside = model.get_submodule(path)
    kind: Any = type(inside)
    unasked = frozenset() if resizing else frozenset({RESIZING})
    off = _off(inside) | unasked
    parts = path.split(".")
    for depth in range(max(0, len(parts) - DEPTH), len(parts)):
        around = model.get_submodule(".".join(parts[:depth]))
        outer: Any = type(around)
        own = tuple(parts[depth:])
        reads = _reads(outer, "forward", _off(around) | unasked)
        taken = {read[-1] for read in reads if read[:-1] == own}
        if name in taken or any((name,) in _reads(kind, other, off) for other in taken - {"forward"}):
            return ".".join(parts[:depth])
    return None


def _off(module: nn.Module) -> frozenset[str]:
    """Return the settings of a module that are off; whether it is trained may change."""
    return frozenset(name for name, value in vars(module).items() if value is False and name != "training")


@cache
def _reads(kind: type[Any], method: str, off: frozenset[str]) -> frozenset[tuple[str, ...]]:
    """Return what a class' method takes from `self`, and the methods that it calls, as paths.

    What it does if a setting, or an argument, is on that is `off` does not count, such as BLOOM's
    `slow_but_exact`.
    """
    methods: dict[str, ast.AST] = {}
    for parent in kind.__mro__:
        if parent is not nn.Module and issubclass(parent, nn.Module):
            methods = {**_methods(parent), **methods}
    found: set[tuple[str, ...]] = set()
    seen, waiting = set[str](), [method]
    while waiting:
        name = waiting.pop()
        if name not in seen and name in methods:
            paths = set(_paths(methods[name], off))
            found |= paths
            waiting += [path[0] for path in paths if len(path) == 1]
        seen.add(name)
    return frozenset(found)


def _methods(kind: type[nn.Module]) -> dict[str, ast.AST]:
    """Return the methods that a class defines, by name; none where it has no source text."""
    defined = _classes(kind.__module__).get(kind.__qualname__)
    body = defined.body if defined else []
    return {node.name: node for node in body if isinstance(node, ast.FunctionDef)}


@cache
def _classes(module: str) -> dict[str, ast.ClassDef]:
    """Return the classes that stand in a module's source text, by name."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[module]))
    except (KeyError, OSError, TypeError, SyntaxError):
        return {}
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def _paths(method: ast.AST, off: frozenset[str]) -> Iterator[tuple[str, ...]]:
    """Yield what a method takes from `self`, as paths: ("mlp", "w1") of `self.mlp.w1`."""
    nodes = list(_nodes(method, off))
    only_asked: set[int] = set()
    for node in nodes:
        if isinstance(node, ast.Attribute) and node.attr in _ABOUT:
            only_asked.add(id(node.value))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
            only_asked.update(map(id, node.args))
    for node in nodes:
        path = _path(node)
        if path and id(node) not in only_asked:
            yield path


def _nodes(node: ast.AST, off: frozenset[str]) -> Iterator[ast.AST]:
    """Yield all nodes of a method but those behind a condition that is never met."""
    yield node
    left_out: list[ast.AST] = []
    if isinstance(node, (ast.If, ast.IfExp)) and _is_never_met(node.test, off):
        left_out += node.body if isinstance(node, ast.If) else [node.body]
    for child in ast.iter_child_nodes(node):
        if child not in left_out:
            yield from _nodes(child, off)


def _is_never_met(test: ast.AST, off: frozenset[str]) -> bool:
    """Return whether a condition asks for a setting, or an argument, that is off."""
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
        return any(_is_never_met(value, off) for value in test.values)
    path = (test.id,) if isinstance(test, ast.Name) else _path(test)
    return len(path) == 1 and path[0] in off


def _path(node: ast.AST) -> tuple[str, ...]:
    """Return the names after `self` of a chain of attributes that is read; empty for what is none."""
    names: list[str] = []
    while isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
        names.insert(0, node.attr)
        node = node.value
    return tuple(names) if isinstance(node, ast.Name) and node.id == "self" else ()
