"""One parameter under two names: prefixes that versions and task heads put before the same module."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from submerge.errors import Problem, RequestError, did_you_mean, few

__all__ = [
    "NameMatch",
    "has_match",
    "match_names",
    "respelling",
    "same_parameters",
    "without_training",
    "without_wrappers",
]

# words that only say which wrapper a module sits in; versions of Transformers add, drop and swap them
_WRAPPERS = frozenset(("base_model", "language_model", "llm", "model", "module", "thinker", "vlm"))
# a tower's own model, which newer versions do without
_TOWER = re.compile(r"\b((?:vision|image|audio|video)_tower|visual)\.(?:vision_model|visual|model)\b")
_TOWER_NAME = re.compile(r"\w+_tower|visual|lm_head")
# modules that got another name
_RENAMED = ((re.compile(r"\.block_sparse_moe\."), ".mlp."),)
# words that torch.compile, FSDP and checkpoints of activations put into names
_TRAINING = re.compile(r"(^|(?<=\.))(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# spellings of earlier versions of PyTorch and transformers
_SPELLINGS = (
    (re.compile(r"\bLayerNorm\.gamma$"), "LayerNorm.weight"),
    (re.compile(r"\bLayerNorm\.beta$"), "LayerNorm.bias"),
    (re.compile(r"\.weight_g$"), ".parametrizations.weight.original0"),
    (re.compile(r"\.weight_v$"), ".parametrizations.weight.original1"),
)
_MOST_COMPARED = 20_000
"""How many names are searched for a similar one at most, for a hint: each takes a while."""


@dataclass(frozen=True)
class NameMatch:
    """For each wanted name the available one, and in one line how they were matched."""

    names: dict[str, str]
    description: str


def has_match(name: str, available: Sequence[str]) -> bool:
    """Return whether a name stands for exactly one of the available ones, as of `match_names`."""
    try:
        match_names([name], available)
    except RequestError:
        return False
    return True


def match_names(wanted: Sequence[str], available: Sequence[str], where: str = "") -> NameMatch:
    """Return which of the available names each wanted one stands for.

    Names match if they are equal; else if they agree but for wrappers, as in
    `language_model.model.layers.0` and `model.language_model.layers.0`; else if they agree but for one
    leading word, as in `bert.encoder` and `encoder`. A looser match counts only if it is the only one.
    Raises `RequestError` with the names that match nothing, several, or the same as another does.
    """
    existing = set(available)
    names: dict[str, str] = {name: name for name in wanted if name in existing}
    ambiguous: list[Problem] = []
    # a looser form sees only what the stricter one left over: it cannot make a sure match ambiguous
    for forms in (_SAME, _LONGER):
        unmatched = [name for name in wanted if name not in names]
        if not unmatched or ambiguous:
            break
        matched = set(names.values())
        free = [name for name in available if name not in matched]
        indices = [(wanted_form, grouped(free, form)) for wanted_form, form in forms]
        for name in unmatched:
            matches = sorted({match for form, index in indices for match in index.get(form(name), ())})
            if len(matches) == 1:
                names[name] = matches[0]
            elif matches:
                what = f"{name} may stand for any of {few(matches)}"
                ambiguous.append(Problem(what, where, "rename it in the file to the one that is meant"))
    missing = [] if ambiguous else [name for name in wanted if name not in names]
    problems = ambiguous[:5] + _missing(missing, available, where) + _twice(names, where)
    if problems:
        raise RequestError(problems)
    return NameMatch({name: names[name] for name in wanted}, _describe(names))


def same_parameters(groups: Sequence[Sequence[str]]) -> list[dict[str, str]]:
    """Return, for each group of names, the common name of each: as the first group that has it spells it.

    Names are of one parameter if they are equal but for wrappers. Raises `RequestError` if two names of
    one group are.
    """
    first_spelling: dict[str, str] = {}
    common_names = []
    for group in groups:
        names = {name: first_spelling.setdefault(without_wrappers(name), name) for name in group}
        if problems := _twice(names, ""):
            raise RequestError(problems)
        common_names.append(names)
    return common_names


def respelling(names: Mapping[str, str]) -> Callable[[str], str]:
    """Return how other names are spelled where these are: a known name by itself, others by its prefix."""
    changes: dict[str, str] = {}
    for old, new in names.items():
        if old != new:
            changes.setdefault(*differing_prefixes(old, new))

    def spelled(name: str) -> str:
        if name in names:
            return names[name]
        parts = name.split(".")
        for stop in range(len(parts) - 1, -1, -1):  # the longest prefix that is known
            if (prefix := changes.get(".".join(parts[:stop]))) is not None:
                return ".".join([*([prefix] if prefix else []), *parts[stop:]])
        return name

    return spelled


def layer_position(parts: Sequence[str]) -> int:
    """Return the place of the first layer's index in a name's words; of the last word where there is none."""
    return next((place for place, part in enumerate(parts) if part.isdigit()), len(parts) - 1)


def without_training(name: str) -> str:
    """Return the name without the words that training puts into it, wherever they stand."""
    return _TRAINING.sub("", name)


def newly_spelled(name: str) -> str:
    """Return the name as today's versions spell it, without words that training puts into it."""
    name = without_training(name)
    for old, new in _SPELLINGS:
        name = old.sub(new, name)
    return name


def without_wrappers(name: str) -> str:
    """Return the name as today's, without the wrappers before its first layer."""
    name = _TOWER.sub(r"\1", newly_spelled(name))
    for old, new in _RENAMED:
        name = old.sub(new, name)
    parts = name.split(".")
    layer = layer_position(parts)
    # behind its first layer a module may be called `model` in earnest
    prefix = [part for part in parts[:layer] if part not in _WRAPPERS]
    return ".".join(prefix + parts[layer:])


def _headless(name: str) -> str:
    """Return the name without wrappers and its first word; an empty text if that says what the module is."""
    first, _, rest = without_wrappers(name).partition(".")
    return rest if "." in rest and not rest[0].isdigit() and not _TOWER_NAME.fullmatch(first) else ""


_Form: TypeAlias = Callable[[str], str]
# which form of the wanted name must be which form of the available one
_SAME: tuple[tuple[_Form, _Form], ...] = ((without_wrappers, without_wrappers),)
_LONGER: tuple[tuple[_Form, _Form], ...] = (
    (without_wrappers, _headless),
    (_headless, without_wrappers),
)


def grouped(names: Iterable[str], form: _Form) -> dict[str, list[str]]:
    """Return the names by a form of each; those that have none (an empty text) are left out."""
    groups: dict[str, list[str]] = {}
    for name in names:
        if key := form(name):
            groups.setdefault(key, []).append(name)
    return groups


def _missing(names: Sequence[str], available: Sequence[str], where: str) -> list[Problem]:
    if not names:
        return []
    end = names[0].split(".")[-2:]
    near = [name for name in available if name.split(".")[-2:] == end] or list(available)
    hint = did_you_mean(names[0], near[:_MOST_COMPARED], "is it of this model?")
    count = f"{len(names)} parameters are" if len(names) > 1 else "the parameter is"
    return [Problem(f"{count} not there: {few(names)}", where, hint)]


def _twice(names: dict[str, str], where: str) -> list[Problem]:
    counts = Counter(names.values())
    problems = []
    for target in sorted(name for name, count in counts.items() if count > 1):
        sources = [name for name, match in names.items() if match == target]
        problems.append(Problem(f"{few(sources)} all stand for {target}", where, "keep one of them"))
    return problems[:5]


def _describe(names: dict[str, str]) -> str:
    """Return `12 as named, 4 with 'language_model.model' read as 'model.language_model'`."""
    changes = Counter(_change(name, match) for name, match in names.items() if name != match)
    same = len(names) - sum(changes.values())
    listed = [f"{same} as named"] if same or not changes else []
    listed += [f"{count} with {text}" for text, count in sorted(changes.items())]
    return ", ".join(listed)


def differing_prefixes(name: str, other: str) -> tuple[str, str]:
    """Return what two names begin with before the ending that they have in common."""
    old, new = name.split("."), other.split(".")
    while old and new and old[-1] == new[-1]:
        old.pop()
        new.pop()
    return ".".join(old), ".".join(new)


def _change(name: str, match: str) -> str:
    old, new = differing_prefixes(name, match)
    if old and new:
        return f"'{old}' read as '{new}'"
    return f"'{new}' put before" if new else f"'{old}' left out"
