"""What a plan says of itself: a few lines of text, and tables for a notebook."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

from submerge.errors import few

__all__ = ["Fact", "ModelRow", "as_html", "as_text"]


class ModelRow(NamedTuple):
    """What is shown of a model."""

    name: str
    role: str
    tensors: str
    size: str


Fact = tuple[str, str]
"""One more line: what it is about, and what is said of that."""


def as_text(title: str, models: Iterable[ModelRow], facts: Iterable[Fact]) -> str:
    """Return a line for the title, one for each role that models have, and one for each fact."""
    roles: dict[str, list[str]] = {}
    for model in models:
        roles.setdefault(model.role, []).append(f"{model.name} ({model.tensors} tensors, {model.size})")
    lines = [*((role, few(names, 4)) for role, names in roles.items()), *facts]
    width = max(len(about) for about, _ in lines)
    return "\n".join([title, *(f"  {about:<{width}}  {text}" for about, text in lines)])


def as_html(title: str, equation: str, models: Iterable[ModelRow], facts: Iterable[Fact]) -> str:
    """Return a heading, a table of the models, and one of the facts."""
    heading = f"<p><b>{escape(title)}</b> {escape(equation)}</p>"
    return heading + _table([("model", "role", "tensors", "size"), *models], head=True) + _table(facts)


def _table(rows: Iterable[Sequence[str]], *, head: bool = False) -> str:
    lines = []
    for number, row in enumerate(rows):
        cell = "th" if head and number == 0 else "td"
        lines.append("".join(f"<{cell}>{escape(text)}</{cell}>" for text in row))
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"
