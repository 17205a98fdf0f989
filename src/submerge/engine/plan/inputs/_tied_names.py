"""Parameters that have several names: which these are, and what each model has under them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from submerge.engine.plan.inputs._inputs import Inputs
from submerge.engine.plan.inputs._named_values import NamedValues, ValuesByName
from submerge.names import is_output_head, layer_of
from submerge.store import Aliases, AliasGroup, Checkpoint, FileTable, find_aliases, tied_embeddings

__all__ = ["TiedNames", "find_tied_names"]

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class TiedNames:
    """The names of one parameter, and what each model has under them.

    `always` are those that are one parameter whatever the configuration says of tied embeddings.
    """

    names: tuple[str, ...]
    always: frozenset[str]
    values: Mapping[int, ValuesByName]

    @property
    def keys(self) -> dict[str, Hashable]:
        """For each name that stands for something in all models, what it stands for."""
        return {
            name: tuple(values[name].key for values in self.values.values())
            for name in self.names
            if all(name in values for values in self.values.values())
        }

    def stored_in(self, model: Checkpoint) -> list[str]:
        """Return the names under which a model stores the parameter."""
        return [name for name in self.names if name in model.tensors]

    def others(self, base: Checkpoint) -> tuple[str | None, list[str]]:
        """Return the first name that the base stores, and those that are another parameter in some model."""
        keys, first = self.keys, next(iter(self.stored_in(base)), None)
        if first not in keys:
            return None, []
        return first, [name for name in self.names if name in keys and keys[name] != keys[first]]


def find_tied_names(
    inputs: Inputs, table: FileTable, *, by_module: bool
) -> tuple[NamedValues, list[TiedNames]]:
    """Return what tells the models' values under each name, and the parameters that have several names.

    Names and shapes tell first, and the base's class in transformers where something depends on it: that
    takes seconds to be imported.
    """
    base, models = inputs.reference_model, inputs.involved

    def read(aliases: Aliases) -> tuple[NamedValues, list[TiedNames]]:
        named = NamedValues(base, aliases, table, by_module)
        return named, [_tied(group, named, models) for group in aliases.groups]

    shapes = _float_shapes(models.values())
    named, groups = read(find_aliases(base.config, shapes, ask=False))
    may_tie = base.config is not None and tied_embeddings(base.config) is not False
    differ = any(len(set(group.keys.values())) > 1 for group in groups)
    if may_tie and (differ or _leave_doubt(named.aliases, groups, inputs, shapes)):
        named, groups = read(find_aliases(base.config, shapes, ask=True))
    return named, groups


def _tied(group: AliasGroup, named: NamedValues, models: Mapping[int, Checkpoint]) -> TiedNames:
    return TiedNames(group.names, group.always, {i: named.of(model, group) for i, model in models.items()})


def _float_shapes(models: Iterable[Checkpoint]) -> dict[str, tuple[int, ...]]:
    """Return the float tensors of all models, with their shapes in the first that has them.

    A table that only a later model has, with other rows than the first, has the shape that the first gives
    to the tables of the same rows: a head of its own, of a vocabulary of its own.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for model in models:
        own = {name: e.shape for name, e in model.tensors.items() if e.is_float}
        tables = [name for name, shape in own.items() if len(shape) == 2 and layer_of(name) is None]
        known = {own[name]: shapes[name] for name in tables if name in shapes}
        for name, shape in own.items():
            shapes.setdefault(name, known.get(shape, shape) if name in tables else shape)
    return shapes


def _leave_doubt(aliases: Aliases, groups: Sequence[TiedNames], inputs: Inputs, shapes: Shapes) -> bool:
    """Return whether names and shapes leave open what is tied to what.

    So they do where a tensor that some model lacks, or a table beside the layers, may be another's copy,
    where a head is in no group (it may have more rows than the base), where the base does not store a name,
    and where an adapter changes a table.
    """
    models = inputs.involved.values()
    grouped = {name for group in groups for name in group.names}
    uneven = {name for name in shapes if any(name not in model.tensors for model in models)}
    tables = {name for name, shape in shapes.items() if len(shape) == 2 and layer_of(name) is None}
    alike, alike_tables = Counter(shapes.values()), Counter(shapes[name] for name in tables)
    return (
        any(alike[shapes[name]] > 1 for name in uneven - grouped)
        or any(alike_tables[shapes[name]] > 1 for name in tables - grouped)
        or any(is_output_head(name) for name in uneven - grouped)
        or any(name not in inputs.reference_model.tensors for name in grouped)
        or (aliases.ties is None and bool(grouped))
        or any(not tables.isdisjoint(model.edited) for model in models)
    )
