"""The benchmarks' modules import each other downwards only, and their classes have names of their own."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "benchmarks").rglob("*.py"))
}


@cache
def _imports(name: str) -> frozenset[str]:
    """Return all modules that a module imports, wherever in it, and each name that it takes from a module."""
    return frozenset(_of(ast.parse(FILES[name].read_text())))


def _of(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            module = node.module or ""
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def test_no_module_imports_itself_over_others() -> None:
    """Imports in functions and those for types alone count, too. A package's own file has no imports."""
    graph = {name: {one for one in _imports(name) if one in FILES and one != name} for name in FILES}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as circle:
        pytest.fail(" -> ".join(circle.args[1]))


def test_no_two_classes_have_one_name() -> None:
    places: dict[str, list[str]] = {}
    for path in sorted((*FILES.values(), *(ROOT / "src").rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(path.relative_to(ROOT).as_posix())
    twice = {name: some for name, some in places.items() if len(some) > 1}
    assert not {name: some for name, some in twice.items() if any("benchmarks" in one for one in some)}
