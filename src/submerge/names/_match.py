"""One parameter under two names: prefixes that versions and task heads put before the same module."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from submerge.errors import Problem, RequestError, did_you_mean, few, nearest

__all__ = ["NameMatch", "match_names", "respelling", "same_parameters"]

# words that only say which wrapper a module sits in; versions of Transformers add, drop and swap them
_WRAPPERS = frozenset(("base_model", "language_model", "llm", "model", "module", "thinker", "vlm"))
# a tower's own model, which newer versions do without
_TOWER = re.compile(r"\b((?:vision|image|audio|video)_tower|visual)\.(?:vision_model|visual|model)\b")
_TOWER_NAME = re.compile(r"\w+_tower|visual|lm_head")
# modules that got another name
_RENAMED = ((re.compile(r"\.block_sparse_moe\."), ".mlp."),)
_NEAR = 20_000


@dataclass(frozen=True)
class NameMatch:
    """For each wanted name the available one, and in one line how they were matched."""

    names: dict[str, str]
    description: str


def match_names(wanted: Sequence[str], available: Sequence[str], where: str = "") -> NameMatch:
    """Return which of the available names each wanted one stands for.

    Names match if they are equal; else if they agree but for wrappers, as in
    `language_model.model.layers.0` and `model.language_model.layers.0`; else if they agree but for one
    leading word, as in `bert.encoder` and `encoder`. A looser match counts only if it is the only one.
    Raises `RequestError` with the names that match nothing, several, or the same as another does.
    """
    there = set(available)
    names: dict[str, str] = {name: name for name in wanted if name in there}
    several: list[Problem] = []
    for forms in (_SAME, _LONGER):
        rest = [name for name in wanted if name not in names]
        if not rest or several:
            break
        taken = set(names.values())
        free = [name for name in available if name not in taken]
        indices = [(own, _index(free, other)) for own, other in forms]
        for name in rest:
            found = sorted({match for own, index in indices for match in index.get(own(name), ())})
            if len(found) == 1:
                names[name] = found[0]
            elif found:
                what = f"{name} may stand for any of {few(found)}"
                several.append(Problem(what, where, "rename it in the file to the one that is meant"))
    missing = [] if several else [name for name in wanted if name not in names]
    problems = several[:5] + _missing(missing, available, where) + _twice(names, where)
    if problems:
        raise RequestError(problems)
    return NameMatch({name: names[name] for name in wanted}, _describe(names))


def same_parameters(groups: Sequence[Sequence[str]]) -> list[dict[str, str]]:
    """Return, for each group of names, the common name of each: as the first group that has it spells it.

    Names are of one parameter if they are equal but for wrappers. Raises `RequestError` if two names of
    one group are.
    """
    spelled: dict[str, str] = {}
    result = []
    for group in groups:
        own = {name: spelled.setdefault(_plain(name), name) for name in group}
        if problems := _twice(own, ""):
            raise RequestError(problems)
        result.append(own)
    return result


def respelling(names: Mapping[str, str]) -> Callable[[str], str]:
    """Return how other names are spelled where these are: a known name by itself, others by its prefix."""
    changes: dict[str, str] = {}
    for old, new in names.items():
        if old != new:
            changes.setdefault(*_prefixes(old, new))

    def spelled(name: str) -> str:
        if name in names:
            return names[name]
        parts = name.split(".")
        for stop in range(len(parts) - 1, -1, -1):  # the longest prefix that is known
            if (head := changes.get(".".join(parts[:stop]))) is not None:
                return ".".join([*([head] if head else []), *parts[stop:]])
        return name

    return spelled


def _plain(name: str) -> str:
    """Return the name as today's, without the wrappers before its first layer."""
    name = _TOWER.sub(r"\1", name)
    for old, new in _RENAMED:
        name = old.sub(new, name)
    parts = name.split(".")
    layer = next((place for place, part in enumerate(parts) if part.isdigit()), len(parts) - 1)
    head = [part for part in parts[:layer] if part not in _WRAPPERS]
    return ".".join(head + parts[layer:])


def _headless(name: str) -> str:
    """Return the plain name without its first word, or an empty text if that says what the module is."""
    head, _, rest = _plain(name).partition(".")
    return rest if "." in rest and not rest[0].isdigit() and not _TOWER_NAME.fullmatch(head) else ""


_Form: TypeAlias = Callable[[str], str]
# which form of the wanted name must be which form of the available one
_SAME: tuple[tuple[_Form, _Form], ...] = ((_plain, _plain),)
_LONGER: tuple[tuple[_Form, _Form], ...] = ((_plain, _headless), (_headless, _plain))


def _index(names: Iterable[str], form: _Form) -> dict[str, list[str]]:
    index: dict[str, list[str]] = {}
    for name in names:
        if key := form(name):
            index.setdefault(key, []).append(name)
    return index


def _missing(names: Sequence[str], available: Sequence[str], where: str) -> list[Problem]:
    if not names:
        return []
    end = names[0].split(".")[-2:]
    near = [name for name in available if name.split(".")[-2:] == end] or list(available)
    hint = did_you_mean(nearest(names[0], near[:_NEAR])) or "is it of this model?"
    count = f"{len(names)} parameters are" if len(names) > 1 else "the parameter is"
    return [Problem(f"{count} not there: {few(names)}", where, hint)]


def _twice(names: dict[str, str], where: str) -> list[Problem]:
    counts = Counter(names.values())
    problems = []
    for target in sorted(name for name, count in counts.items() if count > 1):
        sources = [name for name, found in names.items() if found == target]
        problems.append(Problem(f"{few(sources)} all stand for {target}", where, "keep one of them"))
    return problems[:5]


def _describe(names: dict[str, str]) -> str:
    """Return `12 as named, 4 with 'language_model.model' read as 'model.language_model'`."""
    changes = Counter(_change(name, found) for name, found in names.items() if name != found)
    same = len(names) - sum(changes.values())
    listed = [f"{same} as named"] if same or not changes else []
    listed += [f"{count} with {text}" for text, count in sorted(changes.items())]
    return ", ".join(listed)


def _prefixes(name: str, found: str) -> tuple[str, str]:
    """Return what is left of two names without the ending that they have in common."""
    left, right = name.split("."), found.split(".")
    while left and right and left[-1] == right[-1]:
        left.pop()
        right.pop()
    return ".".join(left), ".".join(right)


def _change(name: str, found: str) -> str:
    old, new = _prefixes(name, found)
    if old and new:
        return f"'{old}' read as '{new}'"
    return f"'{new}' put before" if new else f"'{old}' left out"
