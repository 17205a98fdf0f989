"""The benchmarks keep the rules of the library's code: no import circle, no private file, short functions."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from _structure import Source, circles, long_functions

ROOT = Path(__file__).resolve().parents[2]
MEDIAN_BELOW, ALL_BELOW = 10, 65
"""Lines of a function's body."""


@pytest.fixture(scope="module")
def benchmarks() -> Source:
    return Source(ROOT / "benchmarks")


def test_no_imports_go_in_a_circle(benchmarks: Source) -> None:
    assert not circles(benchmarks)


def test_no_private_file_of_the_library_is_imported(benchmarks: Source) -> None:
    imported = {
        f"{module.path}:{node.lineno}: {node.module}"
        for module in benchmarks.modules.values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ImportFrom) and f"{node.module}".startswith("submerge")
        if any(part.startswith("_") for part in f"{node.module}".split("."))
    }
    assert not imported


def test_classes_have_names_of_their_own(benchmarks: Source) -> None:
    """No two in the benchmarks have one name, and none has the name of one in the library."""
    places: dict[str, list[str]] = {}
    for source in (benchmarks, Source(ROOT / "src" / "submerge")):
        for module in source.modules.values():
            for node in ast.walk(module.tree):
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    places.setdefault(node.name, []).append(module.name)
    shared = {name: modules for name, modules in places.items() if len(modules) > 1}
    assert not [f"{name}: {some}" for name, some in shared.items() if "benchmarks" in str(some)]


def test_functions_are_short(benchmarks: Source) -> None:
    assert not long_functions(benchmarks, MEDIAN_BELOW, ALL_BELOW)
