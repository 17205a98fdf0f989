"""The source code keeps its floors: imports go down, a package's files are its own, functions are short."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from _structure import Source, circles, long_functions, private, same_classes, upward

FLOORS = (
    ("_version", "errors", "environment", "deprecated", "process"),
    ("arguments", "deferred"),
    ("kernels", "device"),
    ("algebra", "names"),
    ("store.format",),
    ("store.folder",),
    ("store.adapter",),
    ("store",),
    ("methods",),
    ("recipe",),
    ("gating",),
    ("calibrate",),
    ("engine.plan.inputs",),
    ("engine.plan.tokens", "engine.plan.projectors", "engine.plan.mixtures"),
    ("engine.plan.tensors",),
    ("engine.plan.composition", "engine.plan.stacks"),
    ("engine.plan",),
    ("engine.work",),
    ("engine.output",),
    ("engine",),
    ("continual",),
    ("routing",),
    ("serving",),
    ("report",),
    ("", "runtime"),  # the public names, gathered from all floors below; and those of earlier versions
    ("cli",),
    ("__main__",),
)
"""The packages of `submerge`, from the ground up."""

MEDIAN_BELOW, ALL_BELOW = 10, 60
"""Lines of a function's body."""

SHARED = ("submerge._version",)
"""The version stands in a file of the top-level package, which itself imports most of the others."""

SCRIPTS = ("submerge.serving._route_template",)
"""Its text is copied to where it runs without Submerge, and nothing imports it."""


@pytest.fixture(scope="module")
def source() -> Source:
    return Source(Path(__file__).resolve().parents[1] / "src" / "submerge")


def listed(violations: list[str]) -> str:
    return "\n".join(["", *violations])


def test_no_imports_go_in_a_circle(source: Source) -> None:
    violations = circles(source)
    assert not violations, listed(violations)


def test_imports_go_down(source: Source) -> None:
    violations = upward(source, FLOORS)
    assert not violations, listed(violations)


def test_no_private_file_of_another_package_is_imported(source: Source) -> None:
    violations = private(source, SHARED)
    assert not violations, listed(violations)


def test_no_two_packages_have_classes_of_one_name(source: Source) -> None:
    violations = same_classes(source, SCRIPTS)
    assert not violations, listed(violations)


def test_functions_are_short(source: Source) -> None:
    violations = long_functions(source, MEDIAN_BELOW, ALL_BELOW)
    assert not violations, listed(violations)


# --- the rules themselves, on sources that break them ---------------------------------------------

Tree = Callable[..., Source]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """A function that writes a package `house` of these files; folders become packages."""

    def write(files: Mapping[str, str]) -> Source:
        root = tmp_path / "house"
        for name, text in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            for folder in (path.parent, *path.parent.parents):
                if folder.is_relative_to(root):
                    (folder / "__init__.py").touch()
            path.write_text(text)
        return Source(root)

    return write


def test_a_circle_of_three_is_found_wherever_the_imports_stand(tree: Tree) -> None:
    source = tree(
        {
            "a.py": "from house.b import f",
            "b.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import house.c",
            "c.py": "def f():\n    from .a import g",
            "d.py": "from house import a",
        }
    )
    assert circles(source) == ["circle: house.a → house.b → house.c → house.a"]


def test_a_circle_through_a_package_is_found(tree: Tree) -> None:
    source = tree({"a/__init__.py": "from house.a._b import B", "a/_b.py": "from house.a import C"})
    assert circles(source) == ["circle: house.a → house.a._b → house.a"]


def test_each_circle_is_told_once(tree: Tree) -> None:
    source = tree(
        {"a.py": "import house.b, house.c", "b.py": "import house.a", "c.py": "from . import a", "d.py": ""}
    )
    assert circles(source) == [
        "circle: house.a → house.b → house.a",
        "circle: house.a → house.c → house.a",
    ]


def test_a_diamond_is_no_circle(tree: Tree) -> None:
    source = tree(
        {
            "__init__.py": "from house.a import x",
            "a.py": "from house import b, c",
            "b.py": "from house.d import y",
            "c.py": "from importlib import import_module\nimport_module('house.d')",
            "d.py": "import os\nfrom elsewhere.a import z",
        }
    )
    assert circles(source) == []
    assert source.graph["house.c"] == {"house.d"}


def test_upward_imports_are_found(tree: Tree) -> None:
    source = tree(
        {
            "__init__.py": "from house.roof import x",
            "ground.py": "\ndef f():\n    from house.hall import y",
            "hall/__init__.py": "from house.hall.stairs import s",
            "hall/_own.py": "from house.roof import z\nfrom house.hall._own import t",
            "hall/stairs/__init__.py": "from house.ground import f",
            "hall/stairs/_step.py": "from house.hall import y",
            "roof.py": "import house.hall._own",
            "shed.py": "",
        }
    )
    floors = (("ground",), ("hall.stairs",), ("hall",), ("roof",), ("",))
    assert upward(source, floors) == [
        "no floor: house.shed",
        "upward: house/ground.py:3 imports house.hall",
        "upward: house/hall/_own.py:1 imports house.roof",
        "upward: house/hall/stairs/_step.py:1 imports house.hall",
    ]


def test_packages_on_one_floor_may_import_one_another(tree: Tree) -> None:
    source = tree({"left.py": "import house.right", "right.py": ""})
    assert upward(source, (("left", "right"),)) == []


def test_private_imports_are_found(tree: Tree) -> None:
    source = tree(
        {
            "_version.py": "v = 1",
            "a/__init__.py": "from house.a._own import x\nfrom house.a.inner._deep import y",
            "a/_own.py": "from house._version import v\nfrom house.a import inner",
            "a/inner/__init__.py": "from ._deep import y, _z\nfrom house.a._own import x",
            "a/inner/_deep.py": "from __future__ import annotations",
            "b.py": "from house.a import __doc__, _own\nfrom house.a import _x\nimport house.a._own",
        }
    )
    assert private(source, ["house._version"]) == [
        "private: house/a/__init__.py:2 imports house.a.inner._deep.y",
        "private: house/a/inner/__init__.py:2 imports house.a._own.x",
        "private: house/b.py:1 imports house.a._own",
        "private: house/b.py:2 imports house.a._x",
        "private: house/b.py:3 imports house.a._own",
    ]


def test_classes_of_one_name_are_found(tree: Tree) -> None:
    source = tree(
        {
            "a/_one.py": "class Plan: ...\nclass Only: ...",
            "a/_two.py": "class Only: ...",
            "b.py": "def f():\n    class Plan: ...",
        }
    )
    assert same_classes(source) == ["two classes: Plan in house/a/_one.py:1, house/b.py:2"]
    assert same_classes(source, ["house.b"]) == []


def test_long_functions_are_found(tree: Tree) -> None:
    def function(name: str, lines: int) -> str:
        return "\n".join(
            [f"def {name}(\n    x,\n):", '    """What it does.\n\n    At length."""', *["    x"] * lines]
        )

    stub = 'class P:\n    def f(self):\n        """A stub."""\n        ...\n'
    source = tree({"a.py": function("f", 9), "b.py": "\n".join([function("h", 65), function("g", 9), stub])})
    assert long_functions(source, 10, 65) == ["long: house/b.py:1 h: 65 lines"]
    assert long_functions(source, 9, 66) == ["median body: 9 lines"]
