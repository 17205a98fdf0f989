"""YAML as plain data, with the line and column of every value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from submerge.recipe._problems import KeyPath, Report, show

__all__ = ["MAX_BITS", "MAX_BYTES", "MAX_DEPTH", "Document", "parse_documents"]

MAX_BYTES = 1 << 20
"""The largest text that is read as a recipe."""

MAX_DEPTH = 40
"""The deepest nesting of lists and mappings."""

MAX_BITS = 8192
"""The longest integer; longer ones cannot be numbers of a recipe, nor always be printed."""

_MAX_VALUES = 50_000  # aliases of aliases can stand for far more values than the text is long
_TAG = "tag:yaml.org,2002:"
_TEXT = {_TAG + kind for kind in ("str", "timestamp", "value", "merge")}

# PyYAML lets these through for ill-formed numbers, escapes, directives and nesting.
_PYYAML_RAISES = (yaml.YAMLError, ValueError, ArithmeticError, LookupError, AttributeError, TypeError)


@dataclass(frozen=True)
class Document:
    """Plain data (dict, list, str, int, float, bool, None), and the report that knows its lines."""

    data: Any
    report: Report


class _BoundError(Exception):
    """A bound on depth or size was met; carries the message and the line."""

    def __init__(self, what: str, line: int) -> None:
        super().__init__(what)
        self.what, self.line = what, line


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with a bound on depth."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _BoundError(f"nested deeper than {MAX_DEPTH} levels", self.line + 1)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def parse_documents(text: str, name: str, *, lenient: bool = False) -> list[Document]:
    """Return the data of each YAML document and where each value was written; one without data for no text.

    Reads what `yaml.safe_load_all` reads, except that dates stay text and that keys must be text.
    Duplicate keys, unknown tags and ill-formed scalars are noted in the document's report; text
    that is not YAML raises `RequestError`. `name` stands before `:LINE` in messages. Where the reports
    are `lenient`, the last of duplicate keys holds, as in mergekit.
    """
    documents: list[Document] = []
    report = Report(name, {}, lenient=lenient)
    loader: _Loader | None = None
    try:
        loader = _Loader(text)
        while loader.check_node():
            positions: dict[KeyPath, tuple[int, int]] = {}
            report = Report(name, positions, lenient=lenient)
            node = loader.get_node()
            data = None if node is None else _Reader(loader, report, positions).value(node, ())
            documents.append(Document(data, report))
    except _BoundError as error:
        report.add_at(error.what, error.line)
    except RecursionError:
        report.add_at("nested too deeply", loader.line + 1 if loader else 1)
    except _PYYAML_RAISES as error:
        report.add_at(*_syntax(error, text, loader.line + 1 if loader else 1))
    else:
        return documents or [Document(None, report)]
    finally:
        if loader is not None:
            loader.dispose()
    report.raise_if_any()
    raise AssertionError("unreachable: every branch above noted a problem")


_HINTS = (
    ("'\\t'", "indent with spaces, not with tabs"),
    ("alias", "put text that begins with * in quotes, such as '*'"),
    ("mapping values", "indent the keys of one mapping alike, and put text with ': ' in it in quotes"),
    ("block end", "let all entries of a list, and all keys of a mapping, begin in one column"),
    ("flow", "close each [ and {, and put commas between what they hold"),
    ("quoted scalar", "close the quotes"),
)
"""What to do, by words of PyYAML's messages."""


def _syntax(error: Exception, text: str, line: int) -> tuple[str, int, str]:
    """Return what is wrong with text that is not YAML, the line, and what to do."""
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return f"character U+{ord(text[error.position]):04X} is not allowed in YAML", line, "remove it"
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        what = ", ".join(part for part in (error.context, error.problem) if part)
        hint = next((hint for words, hint in _HINTS if words in what), "look at this line and that before")
        return f"this is not YAML: {what}", mark.line + 1 if mark else line, hint
    return "this is not YAML", line, "look at this line and that before"


class _Reader:
    """Turns composed nodes into plain data, and notes where each stands."""

    def __init__(self, loader: _Loader, report: Report, positions: dict[KeyPath, tuple[int, int]]) -> None:
        self.loader, self.report, self.positions = loader, report, positions
        self.count = self.depth = 0

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        """Return the data of `node`, which stands at `path`."""
        line, column = node.start_mark.line + 1, node.start_mark.column + 1
        self.positions.setdefault(path, (line, column))
        self.count += 1
        if self.count > _MAX_VALUES:
            raise _BoundError(f"stands for more than {_MAX_VALUES} values (through aliases)", line)
        if self.depth >= MAX_DEPTH:  # an alias inside its own anchor never ends
            raise _BoundError(f"nested deeper than {MAX_DEPTH} levels", line)
        self.depth += 1
        data = self.collection(node, path) if isinstance(node, yaml.CollectionNode) else self.scalar(node)
        self.depth -= 1
        return data

    def collection(self, node: yaml.CollectionNode, path: KeyPath) -> Any:
        """Return a dict or a list."""
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return [self.value(child, (*path, i)) for i, child in enumerate(node.value)]
        self.bad_tag(node)
        return None

    def bad_tag(self, node: yaml.Node) -> None:
        """Note a tag that is none of JSON's kinds of value."""
        self.report.add_at(
            f"YAML tag {show(node.tag)} is not allowed", node.start_mark.line + 1, "remove the tag"
        )

    def mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        """Return a dict of the node's own entries and, behind them, those merged in with `<<`."""
        own: dict[str, int] = {}
        data: dict[str, Any] = {}
        for key_node, child in self.entries(node):
            line, column = key_node.start_mark.line + 1, key_node.start_mark.column + 1
            key = self.scalar(key_node) if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str):
                self.bad_key(key_node, child, key)
                continue
            if key in own:
                what = f"key {show(key)} is given twice, on lines {own[key]} and {line}"
                if not self.report.lenient:
                    self.report.add_at(what, line)
                    continue
                self.report.warn_at(f"{what}; the last one holds, as in mergekit", line)
                self.forget((*path, key))
            own[key] = line
            self.positions.setdefault((*path, key), (line, column))
            data[key] = self.value(child, (*path, key))
        for merged in self.merged(node):
            extra = self.value(merged, path)
            for key, value in (extra if isinstance(extra, dict) else {}).items():
                data.setdefault(key, value)
        return data

    def bad_key(self, node: yaml.Node, child: yaml.Node, key: Any) -> None:
        """Note a key that is no text; a number without a value is what follows the comma of a decimal."""
        shown, hint = "a list or mapping", "put the key in quotes"
        if isinstance(node, yaml.ScalarNode):
            shown = node.value
        if isinstance(key, (int, float)) and not isinstance(key, bool) and child.value == "":
            hint = "a decimal is written with a point: 0.5"
        self.report.add_at(f"keys are text; found {shown}", node.start_mark.line + 1, hint)

    def forget(self, path: KeyPath) -> None:
        """Forget the lines of a value in whose place another one stands."""
        for place in [place for place in self.positions if place[: len(path)] == path]:
            del self.positions[place]

    def entries(self, node: yaml.MappingNode) -> list[tuple[yaml.Node, yaml.Node]]:
        """Return the entries that are no `<<`."""
        return [(key, child) for key, child in node.value if key.tag != _TAG + "merge"]

    def merged(self, node: yaml.MappingNode) -> list[yaml.MappingNode]:
        """Return the mappings that `<<` entries name, the first of which wins."""
        mappings: list[yaml.MappingNode] = []
        for key, child in node.value:
            if key.tag != _TAG + "merge":
                continue
            for part in child.value if isinstance(child, yaml.SequenceNode) else [child]:
                if isinstance(part, yaml.MappingNode):
                    mappings.append(part)
                else:
                    self.report.add_at("'<<' takes mappings", key.start_mark.line + 1)
        return mappings

    def scalar(self, node: yaml.Node) -> Any:
        """Return the scalar's value; what cannot be read is noted and read as None."""
        if node.tag in _TEXT:
            return node.value
        line = node.start_mark.line + 1
        if node.tag not in {_TAG + kind for kind in ("null", "bool", "int", "float")}:
            self.bad_tag(node)
            return None
        try:
            value = self.loader.construct_object(node)
        except _PYYAML_RAISES:
            value = None
            self.report.add_at(f"cannot read {show(node.value)} as a number", line, "put it in quotes")
        if isinstance(value, int) and value.bit_length() > MAX_BITS:
            self.report.add_at("this number is too long", line)
            return None
        return value
