"""Parameters that have several names: what each model has under each, and which of them stay one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch

from submerge.errors import few
from submerge.recipe import Recipe
from submerge.store import (
    DTYPES,
    Aliases,
    AliasGroup,
    Checkpoint,
    FileTable,
    LowRank,
    Part,
    Rows,
    TensorEntry,
    can_untie,
    find_aliases,
    is_t5,
    layer_of,
    same_values,
    tied_embeddings,
)

__all__ = ["Copies", "resolve_copies"]


@dataclass(frozen=True)
class Copies:
    """The models with a tensor under every name that the output has, and what is one parameter there.

    `same` maps a tensor of the output to the one that it is a copy of. `unties` says that the output's
    configuration must say `tie_word_embeddings: false`.
    """

    models: list[Checkpoint]
    same: Mapping[str, str] = field(default_factory=dict)
    unties: bool = False
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Value:
    """What a model has under one name: `stored` there, with an adapter's part on it.

    Two names of a model are one parameter if their `key` is the same.
    """

    entry: TensorEntry
    stored: str
    key: Hashable
    part: Part | None = None
    memory: torch.Tensor | None = None


_Values = dict[str, _Value]

_ONE_OF_TWO = (
    "in training that kept the base's values, and here both get the update, as in PEFT's merge_and_unload; "
    "train with ensure_weight_tying=True, or untie the base and train on that"
)


def resolve_copies(
    recipe: Recipe, models: Sequence[Checkpoint], donor: int, participants: Sequence[int]
) -> Copies:
    """Return the models with tied names in place: read from the tensor that they are tied to.

    Copies that are stored twice are compared by their values: what a configuration ties and a file keeps
    apart is two parameters. A name that the donor does not store, and that a model keeps apart, becomes a
    tensor of the output, where the donor's class has a place for it.
    """
    base = models[donor]
    if not base.shards and not base.memory:  # adapters alone: a list of names without values
        return Copies(list(models))
    with FileTable() as table:
        involved = list(dict.fromkeys([donor, *participants]))
        return _Resolver(recipe, list(models), donor, involved, table).run()


@dataclass
class _Resolver:
    recipe: Recipe
    models: list[Checkpoint]
    donor: int
    involved: list[int]
    table: FileTable
    equal: dict[tuple[TensorEntry, TensorEntry], bool] = field(default_factory=dict)
    renamed: dict[tuple[int, str], TensorEntry] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def run(self) -> Copies:
        groups = self.aliases.groups
        values = [{i: self._values(self.models[i], group) for i in self.involved} for group in groups]
        apart = [self._apart(group, found) for group, found in zip(groups, values, strict=True)]
        unties = self._unties(groups, values, apart)
        same: dict[str, str] = {}
        for group, found, own in zip(groups, values, apart, strict=True):
            self._warn_of_adapters(group, found)
            names = self._named(group, found, self._all_names(group, own) if unties else own)
            self._place(group, found, names)
            first: dict[Hashable, str] = {}
            for name in names:
                key = tuple(found[i][name].key if name in found[i] else None for i in self.involved)
                target = first.setdefault(key, name)
                if target != name and None not in key:
                    same[name] = target
        return Copies(self.models, same, unties, tuple(self.warnings))

    @cached_property
    def aliases(self) -> Aliases:
        """The groups of the donor's class, or by names where nothing depends on its class."""
        base = self.models[self.donor]
        shapes: dict[str, tuple[int, ...]] = {}
        for i in self.involved:
            for name, entry in self.models[i].tensors.items():
                if DTYPES[entry.dtype].kind == "float":
                    shapes.setdefault(name, entry.shape)
        found = find_aliases(base.config, shapes, ask=False)
        if base.config is None or tied_embeddings(base.config) is False or not self._is_open(found, shapes):
            return found
        return find_aliases(base.config, shapes, ask=True)

    def _is_open(self, found: Aliases, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Return whether the class of the donor must be asked: transformers takes seconds to be imported."""
        grouped = {name for group in found.groups for name in group.names}
        stored = [self.models[i].tensors for i in self.involved]
        uneven = {name for name in shapes if any(name not in tensors for tensors in stored)}
        tables = {name for name, shape in shapes.items() if len(shape) == 2 and layer_of(name) is None}
        like = Counter(shapes.values())
        like_tables = Counter(shapes[name] for name in tables)
        adapters = (a for i in self.involved if (a := self.models[i].adapter) is not None)
        return (
            any(like[shapes[name]] > 1 for name in uneven - grouped)
            or any(like_tables[shapes[name]] > 1 for name in tables - grouped)
            or any(name not in stored[0] for name in grouped)
            or (found.ties is None and bool(grouped))
            or any(name in tables for adapter in adapters for name in (*adapter.parts, *adapter.whole))
        )

    def _ties(self, model: Checkpoint) -> bool | None:
        """Return whether a model's configuration ties embeddings; None if there is none.

        transformers before version 5 left out of config.json what was true. The class tells, if it was
        asked.
        """
        if model.config is None:
            return None
        said = tied_embeddings(model.config)
        return said if said is not None else self.aliases.ties is not False

    @cached_property
    def _may_grow(self) -> bool:
        """Whether the output may have a name that the donor does not store."""
        ties = self._ties(self.models[self.donor])
        return bool(ties) and self.aliases.complete and not self.recipe.method.keeps

    def _values(self, model: Checkpoint, group: AliasGroup) -> _Values:
        """Return what a model has under each name of a group."""
        stored = [name for name in group.names if name in model.tensors]
        classes = self._classes(model, group, stored)
        adapter = model.adapter
        parts = adapter.parts if adapter else {}
        together = bool(adapter and adapter.config.get("ensure_weight_tying"))
        as_adapter = self.recipe.output.form == "adapter"  # a module there has an update of its own
        found: _Values = {}
        for name in stored:
            adapted = [n for n in stored if classes[n] == classes[name] and n in parts]
            alone = as_adapter or (name in parts and not together)
            told = (name if name in parts else None) if alone else next(iter(adapted), None)
            part = parts[told] if told else None
            found[name] = _Value(
                model.tensors[name], name, (classes[name], told), part, model.in_memory(name)
            )
        order = sorted(stored, key=lambda name: name not in group.always)
        for name in group.names:
            if name in found:
                continue
            source = next((s for s in order if self._is_tied(model, group, name, s)), None)
            if source is not None:
                found[name] = self._original(model, source, together) or found[source]
        return found

    def _classes(self, model: Checkpoint, group: AliasGroup, stored: Sequence[str]) -> dict[str, str]:
        """Return, for each name that is stored, the first one with the same values that it is tied to."""
        classes: dict[str, str] = {}
        for name in stored:
            tied = (
                first
                for first in dict.fromkeys(classes.values())
                if (self._ties(model) is not False or {first, name} <= group.always)
                and self._equal(model, first, name)
            )
            classes[name] = next(tied, name)
        return classes

    def _equal(self, model: Checkpoint, one: str, other: str) -> bool:
        if model.pending:  # nothing can be read yet: the configuration is believed
            return True
        key = (model.tensors[one], model.tensors[other])
        if key[0].file is None or key[1].file is None:
            return same_values(model, one, other, self.table)
        if key not in self.equal:
            self.equal[key] = same_values(model, one, other, self.table)
        return self.equal[key]

    def _is_tied(self, model: Checkpoint, group: AliasGroup, name: str, source: str) -> bool:
        """Return whether a name that a model does not store stands for one that it stores."""
        base = self.models[self.donor]
        ties = self._ties(model)
        if {name, source} <= group.always or ties:
            return True
        if ties is None and model is not base:  # without a configuration it is as the donor has it
            if base.config is not None:
                return bool(self._ties(base))
            stored = [n for n in group.names if n in base.tensors]
            classes = self._classes(base, group, stored)
            return name in classes and classes[name] == classes.get(source)
        return False

    def _original(self, model: Checkpoint, source: str, together: bool) -> _Value | None:
        """Return the value that an adapter replaced under one name, and left as it was under the others."""
        adapter, under = model.adapter, model.under
        if adapter is None or under is None or together or source not in adapter.whole:
            return None
        entry = under.tensors.get(source)
        if entry is None or len(entry.shape) != 2 or self._ties(model) is False:
            return None
        return _Value(entry, source, ("as it was", source), None, under.in_memory(source))

    def _apart(self, group: AliasGroup, values: Mapping[int, _Values]) -> list[str]:
        """Return the names that the output needs: the donor's own, and those whose values are others."""
        own = [name for name in group.names if name in self.models[self.donor].tensors]
        keys = self._keys(group, values)
        if not own:
            return []
        return own + [n for n in group.names if n not in own and n in keys and keys[n] != keys.get(own[0])]

    def _keys(self, group: AliasGroup, values: Mapping[int, _Values]) -> dict[str, Hashable]:
        """Return, by name, what tells parameters apart over all models, for names that all of them have."""
        return {
            name: tuple(found[name].key for found in values.values())
            for name in group.names
            if all(name in found for found in values.values())
        }

    def _unties(
        self,
        groups: Sequence[AliasGroup],
        values: Sequence[Mapping[int, _Values]],
        apart: Sequence[Sequence[str]],
    ) -> bool:
        """Return whether the output has two parameters where its configuration has one, and warn of it."""
        base = self.models[self.donor]
        if not self._ties(base) or self.recipe.output.form == "adapter":
            return False
        unties = False
        for group, found, names in zip(groups, values, apart, strict=True):
            keys = self._keys(group, found)
            first = next((name for name in names if name in keys), None)
            others = [name for name in names if name in keys and keys[name] != keys[first]] if first else []
            if not first or not others:
                continue
            owners = [
                self.models[i].label
                for i, own in found.items()
                if any(own[name].key != own[first].key for name in others)
            ]
            new = [name for name in others if name not in base.tensors]
            what = f"{few(owners)}: unties {few(others)} from {first}, which {_base_label(base)} ties"
            if new and not self._may_grow:
                if not self.recipe.method.keeps:  # else they are a task's own
                    self.warnings.append(f"{what}: {few(new)} is dropped, for the output has no place for it")
                if len(new) == len(others):
                    continue
            if self._says_nothing(base, owners):
                continue
            if can_untie(base.config or {}):
                unties = True
                self.warnings.append(f"{what}: the output has both, and says tie_word_embeddings: false")
            else:
                kind = (base.config or {}).get("model_type")
                hint = f"a config.json of {kind} cannot say so: readers that trust it take one for both"
                self.warnings.append(f"{what}: the output has both, but {hint}")
        return unties

    def _says_nothing(self, base: Checkpoint, owners: Sequence[str]) -> bool:
        """Return whether only what is missing in config.json, and unknown, says that the donor ties them."""
        silent = tied_embeddings(base.config) is None and self.aliases.ties is None
        return silent and base.label in owners

    def _all_names(self, group: AliasGroup, own: Sequence[str]) -> list[str]:
        """Return all names of a group, for nothing stands for another where the configuration unties them.

        But the embeddings of a T5 are one module in any case.
        """
        one = group.always if is_t5(self.models[self.donor].config or {}) else frozenset()
        return [name for name in group.names if name in own or not (name in one and one & set(own))]

    def _named(self, group: AliasGroup, values: Mapping[int, _Values], names: list[str]) -> list[str]:
        """Return those of the names that the donor stores, or that it can be given."""
        base = self.models[self.donor].tensors
        if not any(name in base for name in group.names):
            return []
        return [name for name in names if name in base or (self._may_grow and name in values[self.donor])]

    def _place(self, group: AliasGroup, values: Mapping[int, _Values], names: Sequence[str]) -> None:
        """Put each model's tensors under these names, and take away copies that say nothing new."""
        keys = self._keys(group, values)
        held = {keys.get(name) for name in names} - {None}
        for i, found in values.items():
            model = self.models[i]
            copies = {n for n in group.names if n not in names and keys.get(n) in held}
            placed = {n: found[n] for n in names if n in found}
            tensors = {n: e for n, e in model.tensors.items() if n not in copies}
            tensors |= {n: self._renamed(value.entry, n) for n, value in placed.items()}
            memory = {n: value.memory for n, value in placed.items() if value.memory is not None}
            new = {n: value.stored for n, value in placed.items() if n not in model.tensors}
            views = {
                n: model.views[s]
                for n, s in new.items()
                if s in model.views and placed[n].entry is model.tensors[s]
            }
            adapter = model.adapter
            if adapter is not None:
                parts = {n: p for n, p in adapter.parts.items() if n not in (*copies, *placed)}
                parts |= {n: value.part for n, value in placed.items() if value.part is not None}
                adapter = replace(adapter, parts=dict(sorted(parts.items())))
            self.models[i] = replace(
                model,
                tensors=tensors,
                shards={**model.shards, **{n: model.shards[s] for n, s in new.items() if s in model.shards}},
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

    def _warn_of_adapters(self, group: AliasGroup, values: Mapping[int, _Values]) -> None:
        """Warn where an adapter was trained on one of several names, and is merged into all of them."""
        for i in values:
            model = self.models[i]
            adapter = model.adapter
            if adapter is None or self._ties(model) is False or self.recipe.output.form == "adapter":
                continue
            own = [name for name in group.names if name in adapter.parts]
            if len(own) != 1 or adapter.config.get("ensure_weight_tying"):
                continue
            part = adapter.parts[own[0]]
            others = [n for n in group.names if n != own[0] and n in values[i]]
            rows = isinstance(part, Rows) and own[0] == group.names[0]  # PEFT trains these in both
            others = [n for n in others if values[i][n].part is part]
            if others and not rows and isinstance(part, LowRank | Rows):
                what = f"adapts {own[0]} alone, and {_base_label(model)} ties {few(others)} to it"
                self.warnings.append(f"{adapter.path}: {what}: {_ONE_OF_TWO}")


def _base_label(model: Checkpoint) -> str:
    """Return the name of the model that has the configuration: the one under an adapter."""
    return (model.under or model).label
