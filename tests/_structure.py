"""What the source code of a package imports and defines, read from its syntax trees; and rules on that.

Each rule returns one line for each violation. All imports count: those inside functions, which run later but
run, and those under TYPE_CHECKING, which a reader has to follow.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from statistics import median


@dataclass(frozen=True)
class Import:
    """One imported module, or one name that is imported from it."""

    module: str
    name: str
    line: int

    @property
    def parts(self) -> list[str]:
        return [*self.module.split("."), *([self.name] if self.name else [])]


@dataclass(frozen=True)
class Module:
    """A source file: its dotted name, the package that it belongs to, and its syntax tree."""

    name: str
    package: str
    path: Path
    tree: ast.Module

    def at(self, line: int) -> str:
        return f"{self.path}:{line}"


@dataclass(frozen=True)
class Source:
    """All modules of one top-level package, which is a folder."""

    root: Path

    @cached_property
    def modules(self) -> dict[str, Module]:
        return {module.name: module for module in map(self._read, sorted(self.root.rglob("*.py")))}

    def _read(self, path: Path) -> Module:
        parts = path.relative_to(self.root.parent).with_suffix("").parts
        package = ".".join(parts[:-1])
        name = package if parts[-1] == "__init__" else ".".join(parts)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        return Module(name, package, path.relative_to(self.root.parent), tree)

    def imports(self, module: Module) -> Iterator[Import]:
        """Return what a module imports of its own top-level package."""
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield from self._ours(Import(alias.name, "", node.lineno))
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    yield from self._ours(Import(_absolute(module, node), alias.name, node.lineno))
            elif isinstance(node, ast.Call) and _called(node) == "import_module":
                for value in node.args[:1]:
                    if isinstance(value, ast.Constant) and isinstance(value.value, str):
                        yield from self._ours(Import(value.value, "", node.lineno))

    def _ours(self, imported: Import) -> Iterator[Import]:
        if imported.module.split(".")[0] == self.root.name:
            yield imported

    def targets(self, imported: Import) -> set[str]:
        """Return the modules whose code an import needs, by name.

        `from package import module` needs the module alone. The packages around a module do not count: Python
        runs their `__init__` first, but that is also how a package imports its own files.
        """
        inner = f"{imported.module}.{imported.name}"
        return {inner} if inner in self.modules else {imported.module}

    @cached_property
    def graph(self) -> dict[str, set[str]]:
        """The modules that each module imports."""
        return {
            name: {target for imported in self.imports(module) for target in self.targets(imported)} - {name}
            for name, module in self.modules.items()
        }


def _absolute(module: Module, node: ast.ImportFrom) -> str:
    """Return the module of `from … import`, with the dots of a relative import resolved."""
    if not node.level:
        return node.module or ""
    parts = module.package.split(".")
    parts = parts[: len(parts) - node.level + 1]
    return ".".join([*parts, *([node.module] if node.module else [])])


def _called(call: ast.Call) -> str:
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


# --- imports --------------------------------------------------------------------------------------


def circles(source: Source) -> list[str]:
    """Return the shortest circle through each import that is part of one, each circle once."""
    graph = source.graph
    with suppress(CycleError):
        TopologicalSorter(graph).prepare()
        return []
    shortest: dict[frozenset[str], list[str]] = {}
    for start, targets in graph.items():
        for target in sorted(targets):
            way = _way(graph, target, start)
            if way:
                shortest.setdefault(frozenset(way), [start, *way])
    return [f"circle: {' → '.join(way)}" for way in sorted(shortest.values(), key=lambda w: (len(w), w))]


def _way(graph: dict[str, set[str]], start: str, end: str) -> list[str]:
    """Return the shortest way from one module to another along imports, or nothing."""
    reached = {start: ""}
    queue = [start]
    for module in queue:
        if module == end:
            way = [module]
            while reached[way[-1]]:
                way.append(reached[way[-1]])
            return way[::-1]
        for target in sorted(graph.get(module, set())):
            if target not in reached:
                reached[target] = module
                queue.append(target)
    return []


def upward(source: Source, floors: Sequence[Iterable[str]]) -> list[str]:
    """Return the imports of a floor above, and the modules that stand on no floor.

    `floors` go from the ground up. A name stands for a module or for all of a package, except for what has a
    longer name of its own; "" is the top-level package's own file. Packages on one floor may import one
    another, as long as that makes no circle.
    """
    height = {name: level for level, names in enumerate(floors) for name in names}
    found = [f"no floor: {name}" for name in source.modules if _floor(source, height, name) is None]
    for module in source.modules.values():
        for imported in source.imports(module):
            for target in source.targets(imported):
                below, above = _floor(source, height, module.name), _floor(source, height, target)
                if below is not None and above is not None and height[below] < height[above]:
                    found.append(f"upward: {module.at(imported.line)} imports {target}")
    return sorted(set(found))


def _floor(source: Source, height: dict[str, int], name: str) -> str | None:
    """Return the longest of the floors' names that a module is part of."""
    parts = name.split(".")[1:]
    while parts and ".".join(parts) not in height:
        parts.pop()
    if not parts and name != source.root.name:
        return None
    return ".".join(parts)


def private(source: Source, shared: Iterable[str] = ()) -> list[str]:
    """Return the imports of a file or a name with a leading underscore that belongs to another package.

    `shared` are modules that every package may import.
    """
    found = []
    for module in source.modules.values():
        for imported in source.imports(module):
            owner = _owner(imported.parts)
            if owner not in ("", module.package) and not source.targets(imported) & set(shared):
                found.append(f"private: {module.at(imported.line)} imports {'.'.join(imported.parts)}")
    return found


def _owner(parts: Sequence[str]) -> str:
    """Return what the first private part of a dotted name belongs to, or nothing if there is none."""
    for number, part in enumerate(parts):
        if part.startswith("_") and not part.endswith("__"):
            return ".".join(parts[:number])
    return ""


# --- definitions ----------------------------------------------------------------------------------


def same_classes(source: Source, scripts: Iterable[str] = ()) -> list[str]:
    """Return the names that classes of several packages have; `scripts` are modules that do not count."""
    places: dict[str, dict[str, str]] = defaultdict(dict)
    for module in source.modules.values():
        if module.name in scripts:
            continue
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef):
                places[node.name].setdefault(module.package, module.at(node.lineno))
    return [
        f"two classes: {name} in {', '.join(where.values())}"
        for name, where in sorted(places.items())
        if len(where) > 1
    ]


@dataclass(frozen=True)
class Body:
    """The lines of a function below its signature and its docstring."""

    place: str
    name: str
    lines: int


def bodies(source: Source) -> list[Body]:
    """Return the body of every function that does something, nested ones too."""
    return [
        Body(module.at(node.lineno), node.name, node.end_lineno - statements[0].lineno + 1)
        for module in source.modules.values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if (statements := _statements(node)) and node.end_lineno
    ]


def _statements(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.stmt]:
    """Return what a function does; nothing for a stub, which would lower the median."""
    body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
    stub = len(body) == 1 and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant)
    return [] if stub else body


def long_functions(source: Source, median_below: int, all_below: int) -> list[str]:
    """Return the functions that are too long, and the median body if that is too long."""
    found = bodies(source)
    middle = median(body.lines for body in found) if found else 0
    return [
        *([f"median body: {middle:g} lines"] if middle >= median_below else []),
        *(f"long: {b.place} {b.name}: {b.lines} lines" for b in found if b.lines >= all_below),
    ]
