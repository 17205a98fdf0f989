"""Adapters among themselves: of one base that is not there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from submerge.errors import Problem, RequestError, few
from submerge.names import same_parameters
from submerge.store._checkpoint import Checkpoint
from submerge.store._trained_rows import differ
from submerge.store.adapter import Adapter, Part, saved_table
from submerge.store.format import FileTable, TensorEntry

__all__ = ["UnlikeTablesError", "side_by_side"]


class UnlikeTablesError(RequestError):
    """Adapters were trained on other values of one parameter, so that they are not updates of one base."""


def side_by_side(adapters: Sequence[Adapter]) -> list[Checkpoint]:
    """Return a base that is not there, and after it each adapter as a model over that base.

    The base has every parameter that an adapter updates, under the first name that it has, and no values.
    Raises `RequestError` where a part is no low-rank update, or where shapes differ. Raises
    `UnlikeTablesError` where that is not so, and adapters saved other values of a table than each other,
    beside what they trained of it.
    """
    _check_forms(adapters)
    names = same_parameters([list(adapter.parts) for adapter in adapters])
    union = _Union()
    for adapter, common_names in zip(adapters, names, strict=True):
        union.add(adapter, common_names)
    if union.problems:
        raise RequestError(union.problems)
    if problems := union.unlike_tables():
        raise UnlikeTablesError(problems)
    base = Checkpoint("", adapters[0].path, None, union.entries, {})
    return [base, *(_alone(base, a, parts) for a, parts in zip(adapters, union.parts, strict=True))]


def _check_forms(adapters: Sequence[Adapter]) -> None:
    """Raise `RequestError` where names of one form do not tell those of another."""
    forms = {adapter.form: adapter for adapter in adapters}
    if "kohya" in forms and len(forms) > 1:
        other = next(adapter for form, adapter in forms.items() if form != "kohya")
        what = f"has kohya's names of modules, which do not tell those of {other.label}"
        hint = "add 'base_model: …', whose names both stand for"
        raise RequestError(Problem(what, str(forms["kohya"].path), hint))


@dataclass
class _Union:
    """The parameters that several adapters update, each adapter's parts under their names, and problems.

    `owners` names the adapter that a parameter's shape is from. `tables` are the values from before the
    training that adapters have saved, by the parameter.
    """

    entries: dict[str, TensorEntry] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)
    parts: list[dict[str, Part]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    tables: dict[str, list[tuple[Adapter, TensorEntry]]] = field(default_factory=dict)

    def add(self, adapter: Adapter, common_names: Mapping[str, str]) -> None:
        """Add an adapter, whose parameters go by other names here."""
        parts: dict[str, Part] = {}
        dense: dict[str | None, list[str]] = {}
        for name in adapter.parts:
            part = adapter.low_rank(name)
            if part is None:
                dense.setdefault(adapter.dense_only(name), []).append(name)
                continue
            common = common_names[name]
            shape = self.entries.setdefault(
                common, TensorEntry(common, part.left_entry.dtype, part.stored, None, 0, 0)
            ).shape
            owner = self.owners.setdefault(common, adapter.label)
            if shape != part.stored:
                what = f"{name} is {list(part.stored)} here and {list(shape)} in {owner}"
                self.problems.append(Problem(what, str(adapter.path), "merge adapters of one base"))
            parts[common] = part
            if (table := saved_table(part)) is not None:
                self.tables.setdefault(common, []).append((adapter, table))
        self.parts.append(parts)
        for why, listed in dense.items():
            what = f"{few(listed)} {'is' if len(listed) == 1 else 'are'} no low-rank update: {why}"
            hint = (
                "name the base that it was trained on as base_model, so that its values can be read; heads "
                "of different tasks are kept side by side by merge_method: mass"
            )
            self.problems.append(Problem(what, str(adapter.path), hint))

    def unlike_tables(self) -> list[Problem]:
        """Return which adapters were trained on other values of a table than the first one that has it.

        Where some are not downloaded yet, nothing is compared.
        """
        unlike: dict[tuple[str, str], list[str]] = {}
        for name, ((first, table), *others) in self.tables.items():
            for adapter, other in others:
                if not (adapter.pending or first.pending) and _unlike(first, table, adapter, other):
                    unlike.setdefault((str(adapter.path), first.label), []).append(name)
        hint = "name the base as base_model: what they have saved then counts against its values"
        return [
            Problem(f"was trained on other values of {few(names)} than {first}; both saved them", path, hint)
            for (path, first), names in unlike.items()
        ]


def _unlike(first: Adapter, table: TensorEntry, adapter: Adapter, other: TensorEntry) -> bool:
    """Return whether two adapters have saved other values of a table, which has one shape in both."""
    with FileTable() as files:
        own = (other.dtype, adapter.source(other, files))
        return differ((table.dtype, first.source(table, files)), own, table.numel)


def _alone(base: Checkpoint, adapter: Adapter, parts: Mapping[str, Part]) -> Checkpoint:
    """Return an adapter as a model over a base without values."""
    return replace(
        base,
        label=adapter.label,
        path=adapter.path,
        revision=adapter.revision,
        adapter=replace(adapter, parts=parts),
        pending=adapter.pending,
    )
