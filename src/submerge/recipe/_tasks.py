"""What an entry of `models` says of its task, for methods with a gate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from submerge.errors import few
from submerge.methods import Method
from submerge.recipe._model_entry import ModelEntry
from submerge.recipe._problems import KeyPath, Report, show

__all__ = ["check_distinct", "check_file_names", "check_names", "read_task"]


def read_task(
    raw: dict[str, Any], path: KeyPath, method: Method | None, report: Report, *, named: bool = False
) -> tuple[str, tuple[str, ...]]:
    """Return the `name` and the `head` of an entry of `models`, which only a gate has use for.

    `named` says that models have names all the same, which coefficients go by.
    """
    refused = _refused(method, named) if method else {}
    given = [key for key in refused if raw.get(key) is not None]
    for key in given:
        report.add_ignored(f"{key!r} says something about {refused[key]}", (*path, key), "remove the key")
    if given:
        return "", ()
    name, head = raw.get("name", ""), raw.get("head", ())
    if name and not isinstance(name, str):
        report.add(f"a task's name is text, not {show(name)}", (*path, "name"), "put it in quotes")
        name = ""
    patterns = [head] if isinstance(head, str) else head or ()
    if not isinstance(patterns, (list, tuple)) or not all(
        isinstance(pattern, str) and pattern for pattern in patterns
    ):
        hint = "write 'head: classifier', or a list"
        report.add(f"a head is named by parts of its tensors' names, not {show(head)}", (*path, "head"), hint)
        patterns = ()
    return name or "", tuple(patterns)


def _refused(method: Method, named: bool) -> dict[str, str]:
    """Return the keys that a method has no use for, and why."""
    if not method.gate:
        keys = ("head",) if named or method.calibration or method.moments else ("name", "head")
        return dict.fromkeys(keys, f"a task, and {method.name} merges all into one")
    return {} if method.gate.own_heads else {"head": f"a task's head, and {method.name} merges all heads"}


def check_names(entries: list[ModelEntry], report: Report) -> None:
    """Note names that two tasks have."""
    for name, count in Counter(entry.name for entry in entries if entry.name).items():
        if count > 1:
            report.add(f"{count} models are named {show(name)}", ("models",), "give each task its own name")


def check_distinct(entries: Sequence[ModelEntry], report: Report) -> bool:
    """Return whether all models have names of their own; note those that two have."""
    counts = Counter(entry.adapter_name for entry in entries)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        report.add(f"several models would be called {few(twice)}", ("models",), "give each a 'name: …'")
    return not twice


def check_file_names(entries: Sequence[ModelEntry], report: Report) -> None:
    """Note models of which no files can have the names: two have one, or it is none."""
    check_distinct(entries, report)
    names = dict.fromkeys(entry.adapter_name for entry in entries)
    if wrong := [name for name in names if "/" in name or name.startswith(".")]:
        report.add(f"{few(wrong)} can be no file's name", ("models",), "give each a 'name: …'")
