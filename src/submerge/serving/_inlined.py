"""A module of the library as one file that runs without it: what it imports of the library is written out.

Only the definitions that are used come along, each once and as they stand, with the imports of other packages
that they need. They keep the order of their modules, and modules that of their imports, as Python would run
them. Modules import from the library by `from … import …`, where a name is the same everywhere; an `as` may
stand in the module that is written out, alone.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import import_module

__all__ = ["inlined"]

LIBRARY = "submerge"
DEFERRED = ("submerge.deferred", "torch")
"""What stands for `import torch`."""


@dataclass(frozen=True)
class _Module:
    """A module of the library as it is written."""

    name: str
    text: str

    @cached_property
    def body(self) -> list[ast.stmt]:
        return ast.parse(self.text).body

    @cached_property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    @cached_property
    def definitions(self) -> dict[str, list[ast.stmt]]:
        """Functions, classes and constants by name, these with the text that describes them."""
        found: dict[str, list[ast.stmt]] = {}
        for statement, after in zip(self.body, [*self.body[1:], None], strict=True):
            described = isinstance(statement, (ast.Assign, ast.AnnAssign)) and isinstance(after, ast.Expr)
            for name in _defined(statement):
                found[name] = [statement, after] if described and after is not None else [statement]
        return found

    @cached_property
    def imports(self) -> dict[str, tuple[str, str, str]]:
        """What each name is that is imported at the top: its module, its name there, and the statement.

        Imports for type checkers alone are none: what they name stands in annotations, which nothing
        evaluates, and does not come along.
        """
        found: dict[str, tuple[str, str, str]] = {}
        for statement in self.body:
            if isinstance(statement, ast.ImportFrom):
                module = statement.module or ""
                for one in statement.names:
                    written = ast.unparse(ast.ImportFrom(module, [one], 0))
                    found[one.asname or one.name] = (module, one.name, written)
            elif isinstance(statement, ast.Import):
                for one in statement.names:
                    found[one.asname or one.name] = (one.name, "", ast.unparse(ast.Import([one])))
        return found

    def nodes(self, name: str) -> list[ast.AST]:
        """Return all nodes of a definition."""
        return [node for statement in self.definitions[name] for node in ast.walk(statement)]

    def text_of(self, name: str, nodes: Iterable[ast.AST]) -> str:
        """Return a definition, of these nodes, without examples, and imports from the library inside."""
        first, *_ = statements = self.definitions[name]
        start = min([first.lineno, *(d.lineno for d in getattr(first, "decorator_list", ()))])
        left_out = {number for node in nodes for number in _not_written(node, self.lines)}
        kept = range(start, (statements[-1].end_lineno or 0) + 1)
        return "\n".join(self.lines[number - 1] for number in kept if number not in left_out)


def _defined(statement: ast.stmt) -> list[str]:
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
        return [statement.name]
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name) and target.id != "__all__"]


def _not_written(node: ast.AST, lines: list[str]) -> Iterator[int]:
    """Yield the numbers of lines of imports from the library, and of the examples of a docstring."""
    if isinstance(node, ast.ImportFrom) and _is_own(node.module or ""):
        yield from range(node.lineno, (node.end_lineno or node.lineno) + 1)
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node):
        first, last = node.body[0].lineno, node.body[0].end_lineno or 0
        begins = [n for n in range(first, last) if lines[n - 1].strip() == "Examples:"]
        for begin in begins[:1]:  # with the empty line before; examples are what a docstring ends with
            yield from range(begin - 1, last)


def _is_own(module: str) -> bool:
    return module.partition(".")[0] == LIBRARY


class _Needs:
    """Finds what definitions need, and theirs need, by the modules that define it."""

    def __init__(self) -> None:
        self.sources: dict[str, _Module] = {}
        self.needed: dict[str, dict[str, list[ast.AST]]] = {}
        self.outside: dict[str, str] = {}

    def source(self, module: str) -> _Module:
        if module not in self.sources:
            self.sources[module] = _Module(module, inspect.getsource(import_module(module)))
        return self.sources[module]

    def need(self, module: str, name: str) -> None:
        """Note a name of a module, and all that its definition uses."""
        source = self.source(module)
        if name in source.definitions:
            if name not in self.needed.setdefault(module, {}):
                self.needed[module][name] = source.nodes(name)
                self.need_used(source, self.needed[module][name])
        elif name in source.imports:
            self.need_import(name, *source.imports[name])

    def need_import(self, name: str, module: str, original: str, written: str) -> None:
        if (module, original) == DEFERRED:
            self.note("torch", "import torch")
        elif _is_own(module):
            self.need(module, original)
        else:
            self.note(name, written)

    def need_used(self, source: _Module, nodes: Iterable[ast.AST]) -> None:
        for name in dict.fromkeys(node.id for node in nodes if isinstance(node, ast.Name)):
            self.need(source.name, name)
        for node in nodes:
            if isinstance(node, ast.ImportFrom) and _is_own(node.module or ""):
                for one in node.names:
                    self.need(node.module or "", one.name)

    def note(self, name: str, written: str) -> None:
        """Note an import from outside; raise `ValueError` where a name means two things."""
        if self.outside.setdefault(name, written) != written:
            raise ValueError(f"{name} is imported twice: {self.outside[name]!r} and {written!r}")

    def modules(self) -> list[str]:
        """Return the modules of what is needed, each after those that it imports from."""
        ordered: dict[str, None] = {}
        entered: set[str] = set()

        def enter(module: str) -> None:
            if module in entered:
                return
            entered.add(module)
            for imported in sorted({m for m, _, _ in self.source(module).imports.values() if _is_own(m)}):
                if imported in self.sources:
                    enter(imported)
            ordered[module] = None

        for module in sorted(self.needed):
            enter(module)
        return [module for module in ordered if module in self.needed]


@cache
def inlined(module: str, heading: str) -> str:
    """Return a module's text with what it imports from the library before it, under a comment `heading`.

    Raises `ValueError` where two definitions would have one name.
    """
    own, collector = _Module(module, inspect.getsource(import_module(module))), _Needs()
    for name, found in own.imports.items():
        collector.need_import(name, *found)
    parts, names = [], list(own.definitions)
    for where in collector.modules():
        source = collector.source(where)
        needed = collector.needed[where]
        wanted = [name for name in source.definitions if name in needed]
        parts += [source.text_of(name, needed[name]) for name in wanted]
        names += wanted
    aliases = {n: original for n, (m, original, _) in own.imports.items() if _is_own(m) and n != original}
    if twice := sorted({name for name in names if names.count(name) > 1} - {*aliases.values()}):
        raise ValueError(f"defined twice in what {module} needs: {', '.join(twice)}")
    parts += [f"{name} = {original}" for name, original in aliases.items()]
    about, *rest = own.body
    first = next(s.lineno for s in rest if not isinstance(s, (ast.Import, ast.ImportFrom)))
    head = "\n".join([*own.lines[: about.end_lineno], "", *_import_lines(collector.outside.values())])
    return "\n\n\n".join([head, heading, *parts, "\n".join(own.lines[first - 1 :])]) + "\n"


def _import_lines(statements: Iterable[str]) -> list[str]:
    """Return imports in the usual order, those from one module together."""
    modules: list[str] = []
    names: dict[str, list[str]] = {}
    for statement in statements:
        if statement.startswith("import "):
            modules.append(statement)
        else:
            module, _, name = statement.removeprefix("from ").partition(" import ")
            names.setdefault(module, []).append(name)
    first = names.pop("__future__", [])
    lines = [f"from {module} import {', '.join(sorted(names[module]))}" for module in sorted(names)]
    return [*(f"from __future__ import {name}" for name in first), *sorted(modules), *lines]
