"""Parameters that have several names: what is one in the output, and what its configuration must say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from submerge.engine.plan._inputs import Inputs
from submerge.engine.plan._named_values import NamedValues, Values
from submerge.errors import few
from submerge.recipe import Recipe
from submerge.store import (
    DTYPES,
    Aliases,
    AliasGroup,
    Checkpoint,
    FileTable,
    LowRank,
    Rows,
    TensorEntry,
    can_untie,
    find_aliases,
    is_t5,
    layer_of,
    tied_embeddings,
)

__all__ = ["Copies", "resolve_copies"]

_ONE_OF_TWO = (
    "in training that kept the base's values, and here both get the update, as in PEFT's merge_and_unload; "
    "train with ensure_weight_tying=True, or untie the base and train on that"
)


@dataclass(frozen=True)
class Copies:
    """The inputs with a tensor under every name that the output has, and what is one parameter there.

    `same` maps a tensor of the output to the one that it is a copy of. `unties` says that the output's
    configuration must say `tie_word_embeddings: false`.
    """

    inputs: Inputs
    same: Mapping[str, str] = field(default_factory=dict)
    unties: bool = False
    warnings: tuple[str, ...] = ()


def resolve_copies(recipe: Recipe, inputs: Inputs) -> Copies:
    """Return the models with tied names in place: read from the tensor that they are tied to.

    Copies that are stored twice are compared by their values: what a configuration ties and a file keeps
    apart is two parameters. A name that the reference does not store, and that a model keeps apart, becomes a
    tensor of the output, where the reference's class has a place for it.
    """
    base = inputs.reference_model
    if not base.shards and not base.memory:  # adapters alone: a list of names without values
        return Copies(inputs)
    with FileTable() as table:
        resolver = _Resolver(recipe, base, inputs.involved, table)
        resolver.look()
    same, unties = resolver.decide()
    placed = [resolver.placed.get(i, model) for i, model in enumerate(inputs.models)]
    return Copies(inputs.of_models(placed), same, unties, tuple(resolver.warnings))


@dataclass(frozen=True)
class _Group:
    """One parameter: its names, what each model has under them, and what tells parameters apart by name."""

    names: tuple[str, ...]
    always: frozenset[str]
    values: Mapping[int, Values]

    @property
    def keys(self) -> dict[str, Hashable]:
        """For each name that stands for something in all models, what it stands for."""
        return {
            name: tuple(values[name].key for values in self.values.values())
            for name in self.names
            if all(name in values for values in self.values.values())
        }


@dataclass
class _Resolver:
    recipe: Recipe
    base: Checkpoint
    models: Mapping[int, Checkpoint]
    table: FileTable
    groups: list[_Group] = field(default_factory=list)
    placed: dict[int, Checkpoint] = field(default_factory=dict)
    renamed: dict[tuple[int, str], TensorEntry] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def look(self) -> None:
        """Find the groups, by names first, and by the reference's class where something depends on it."""
        shapes: dict[str, tuple[int, ...]] = {}
        for model in self.models.values():
            for name, entry in model.tensors.items():
                if DTYPES[entry.dtype].kind == "float":
                    shapes.setdefault(name, entry.shape)
        self._take(find_aliases(self.base.config, shapes, ask=False))
        may_tie = self.base.config is not None and tied_embeddings(self.base.config) is not False
        if may_tie and (self._is_open(shapes) or any(len(set(g.keys.values())) > 1 for g in self.groups)):
            self._take(find_aliases(self.base.config, shapes, ask=True))

    def _take(self, aliases: Aliases) -> None:
        self.aliases = aliases
        by_module = self.recipe.output.form == "adapter"
        self.named = NamedValues(self.base, aliases, self.table, by_module)
        self.groups = [self._group(group) for group in aliases.groups]

    def _group(self, group: AliasGroup) -> _Group:
        values = {i: self.named.of(model, group) for i, model in self.models.items()}
        return _Group(group.names, group.always, values)

    def _is_open(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Return whether names leave something open: transformers takes seconds to be imported."""
        grouped = {name for group in self.groups for name in group.names}
        uneven = {n for n in shapes if any(n not in model.tensors for model in self.models.values())}
        tables = {name for name, shape in shapes.items() if len(shape) == 2 and layer_of(name) is None}
        like, like_tables = Counter(shapes.values()), Counter(shapes[name] for name in tables)
        adapters = [model.adapter for model in self.models.values() if model.adapter is not None]
        return (
            any(like[shapes[name]] > 1 for name in uneven - grouped)
            or any(like_tables[shapes[name]] > 1 for name in tables - grouped)
            or any(name not in self.base.tensors for name in grouped)
            or (self.aliases.ties is None and bool(grouped))
            or any(name in tables for adapter in adapters for name in (*adapter.parts, *adapter.whole))
        )

    def decide(self) -> tuple[dict[str, str], bool]:
        """Return which tensors of the output are copies of which, and whether its configuration unties them.

        Puts the models' tensors in their places.
        """
        unties = True in [self._unties(group) for group in self.groups]  # each warns
        same: dict[str, str] = {}
        for group in self.groups:
            self._warn_of_adapters(group)
            names = self._names(group, unties)
            self._place(group, names)
            first: dict[Hashable, str] = {}
            for name in names:
                target = first.setdefault(group.keys.get(name, name), name)
                if target != name:
                    same[name] = target
        return same, unties

    @property
    def _may_grow(self) -> bool:
        """Whether the output may have a name that the reference does not store."""
        return bool(self.named.ties(self.base)) and self.aliases.complete and not self._own_heads

    @property
    def _own_heads(self) -> bool:
        """Whether what the base lacks is a task's own."""
        return self.recipe.method.gate is not None and self.recipe.method.gate.own_heads

    def _apart(self, group: _Group) -> tuple[str | None, list[str]]:
        """Return the first name that the reference stores, and those that are another parameter than it."""
        first = next((name for name in group.names if name in self.base.tensors), None)
        keys = group.keys
        if first not in keys:
            return None, []
        return first, [name for name in group.names if name in keys and keys[name] != keys[first]]

    def _names(self, group: _Group, unties: bool) -> list[str]:
        """Return the names of a group that the output has.

        Those that the reference stores, and those that are another parameter. All of them, where the
        configuration unties them and nothing stands for another; but a T5's embeddings are one module.
        """
        first, apart = self._apart(group)
        stored = {name for name in group.names if name in self.base.tensors}
        if first is None or not self._may_grow:
            return [name for name in group.names if name in stored]
        one = group.always if is_t5(self.base.config or {}) and stored & group.always else frozenset()
        new = {name for name in group.keys if name in apart or (unties and name not in one)}
        return [name for name in group.names if name in stored | new]

    def _unties(self, group: _Group) -> bool:
        """Return whether the output has two parameters where its configuration has one, and warn of it."""
        first, others = self._apart(group)
        if not others or not self.named.ties(self.base) or self.recipe.output.form == "adapter":
            return False
        owners = [
            self.models[i].label
            for i, values in group.values.items()
            if any(values[name].key != values[first].key for name in others if first)
        ]
        what = f"{few(owners)}: unties {few(others)} from {first}, which {_base_label(self.base)} ties"
        new = [name for name in others if name not in self.base.tensors]
        if new and not self._may_grow:
            if not self._own_heads:
                self.warnings.append(f"{what}: {few(new)} is dropped, for the output has no place for it")
            if len(new) == len(others):
                return False
        silent = tied_embeddings(self.base.config) is None and self.aliases.ties is None
        if silent and self.base.label in owners:  # then nothing says that the base ties them
            return False
        if can_untie(self.base.config or {}):
            self.warnings.append(f"{what}: the output has both, and says tie_word_embeddings: false")
            return True
        kind = (self.base.config or {}).get("model_type")
        hint = f"a config.json of {kind} cannot say so: readers that trust it take one for both"
        self.warnings.append(f"{what}: the output has both, but {hint}")
        return False

    def _place(self, group: _Group, names: Sequence[str]) -> None:
        """Put each model's tensors under these names, and take away copies that say nothing new."""
        keys = group.keys
        held = {keys[name] for name in names if name in keys}
        copies = {name for name in keys if name not in names and keys[name] in held}
        for i, values in group.values.items():
            own = {name: values[name] for name in names if name in values}
            self.placed[i] = self._with(self.placed.get(i, self.models[i]), own, copies)

    def _with(self, model: Checkpoint, own: Values, copies: set[str]) -> Checkpoint:
        tensors = {name: entry for name, entry in model.tensors.items() if name not in copies}
        tensors |= {name: self._renamed(value.entry, name) for name, value in own.items()}
        new = {name: value.stored for name, value in own.items() if name not in model.tensors}
        adapter = model.adapter
        if adapter is not None:
            parts = {n: part for n, part in adapter.parts.items() if n not in own and n not in copies}
            parts |= {name: value.part for name, value in own.items() if value.part is not None}
            adapter = replace(adapter, parts=dict(sorted(parts.items())))
        memory = {name: value.memory for name, value in own.items() if value.memory is not None}
        views = {
            name: model.views[source]
            for name, source in new.items()
            if source in model.views and own[name].entry is model.tensors[source]
        }
        return replace(
            model,
            tensors=tensors,
            shards={**model.shards} | {n: model.shards[s] for n, s in new.items() if s in model.shards},
            memory={**model.memory, **memory},
            views={**model.views, **views},
            adapter=adapter,
            aliases={**model.aliases, **new},
        )

    def _renamed(self, entry: TensorEntry, name: str) -> TensorEntry:
        """Return the entry under this name: the same object for the same one, by which the base is known."""
        if entry.name == name:
            return entry
        return self.renamed.setdefault((id(entry), name), replace(entry, name=name))

    def _warn_of_adapters(self, group: _Group) -> None:
        """Warn where an adapter was trained on one of several names, and is merged into all of them."""
        for i, values in group.values.items():
            model = self.models[i]
            adapter = model.adapter
            adapted = [name for name in group.names if adapter is not None and name in adapter.parts]
            if adapter is None or len(adapted) != 1 or adapter.config.get("ensure_weight_tying"):
                continue
            part = adapter.parts[adapted[0]]
            others = [n for n, value in values.items() if n != adapted[0] and value.part is part]
            trained_in_both = isinstance(part, Rows) and adapted[0] == group.names[0]
            if others and not trained_in_both and isinstance(part, LowRank | Rows):
                what = f"adapts {adapted[0]} alone, and {_base_label(model)} ties {few(others)} to it"
                self.warnings.append(f"{adapter.path}: {what}: {_ONE_OF_TWO}")


def _base_label(model: Checkpoint) -> str:
    """Return the name of the model that has the configuration: the one under an adapter."""
    return (model.under or model).label
