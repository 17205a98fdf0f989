"""What a model has under each name of one parameter."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from submerge.store import (
    Aliases,
    AliasGroup,
    Checkpoint,
    FileTable,
    InMemory,
    Part,
    RowSource,
    TensorEntry,
    same_values,
    tied_embeddings,
)

__all__ = ["NamedValue", "NamedValues", "ValuesByName"]


@dataclass(frozen=True)
class NamedValue:
    """What a model has under one name: the tensor called `stored` in its file, with an adapter's part on it.

    Its values may be in `memory`, or be `rows` that are computed when they are read. Two names of a model are
    one parameter if their `key` is the same.
    """

    entry: TensorEntry
    stored: str
    key: Hashable
    part: Part | None = None
    memory: InMemory | None = None
    rows: RowSource | None = None


ValuesByName = Mapping[str, NamedValue]


@dataclass
class NamedValues:
    """Tells what models have under the names of a group, where `base` gives the output's configuration.

    With `by_module` an adapter's part belongs to the module that it was trained on, and to no other.
    """

    base: Checkpoint
    aliases: Aliases
    table: FileTable
    by_module: bool
    equal: dict[tuple[TensorEntry, TensorEntry], bool] = field(default_factory=dict)

    def ties(self, model: Checkpoint) -> bool | None:
        """Return whether a model's configuration ties embeddings; None if it has none.

        transformers before version 5 left out of config.json what was true; a class that is known tells.
        """
        if model.config is None:
            return None
        stated = tied_embeddings(model.config)
        return stated if stated is not None else self.aliases.ties is not False

    def of(self, model: Checkpoint, group: AliasGroup) -> ValuesByName:
        """Return what the model has under each name of the group that stands for something in it."""
        stored = [name for name in group.names if name in model.tensors]
        classes = self._classes(model, group, stored)
        values = {name: self._stored(model, name, classes) for name in stored}
        # what no configuration unties comes first: a name that is missing is surely a copy of that
        sources = sorted(stored, key=lambda name: name not in group.always)
        for name in group.names:
            source = next((s for s in sources if self._is_tied(model, group, name, s)), None)
            if name not in values and source is not None:
                values[name] = self._replaced(model, source) or values[source]
        return values

    def _stored(self, model: Checkpoint, name: str, classes: Mapping[str, str]) -> NamedValue:
        """Return the value of a name that is stored: with its own part, or that of a copy."""
        adapter = model.adapter
        parts = adapter.parts if adapter else {}
        adapted = next((n for n, first in classes.items() if first == classes[name] and n in parts), None)
        # an update that was trained on a name of its own is that name's, though its values be another's
        if self.by_module or (name in parts and not _trained_as_one(model)):
            adapted = name if name in parts else None
        return NamedValue(
            entry=model.tensors[name],
            stored=name,
            key=(classes[name], adapted),
            part=parts[adapted] if adapted else None,
            memory=model.in_memory(name),
            rows=model.computed.get(name),
        )

    def _classes(self, model: Checkpoint, group: AliasGroup, stored: Sequence[str]) -> dict[str, str]:
        """Return, for each name that is stored, the first one with the same values that it is tied to."""
        classes: dict[str, str] = {}
        for name in stored:
            tied = (
                first
                for first in dict.fromkeys(classes.values())
                if ({first, name} <= group.always or self._may_tie(model, stored))
                and self._equal(model, first, name)
            )
            classes[name] = next(tied, name)
        return classes

    def _may_tie(self, model: Checkpoint, stored: Sequence[str]) -> bool:
        """Return whether copies with equal values are one parameter.

        So they are in a fine-tune of a base that ties them, whatever its own configuration says.
        """
        if self.ties(model) is not False:
            return True
        adapted = model.adapter is not None and any(name in model.adapter.parts for name in stored)
        return model is not self.base and not adapted and self.ties(self.base) is not False

    def _equal(self, model: Checkpoint, one: str, other: str) -> bool:
        if model.pending:  # nothing can be read yet: the configuration is believed
            return True
        key = (model.tensors[one], model.tensors[other])  # adapters on one base share its answer
        if None in (key[0].file, key[1].file):
            return same_values(model, one, other, self.table)
        if key not in self.equal:
            self.equal[key] = same_values(model, one, other, self.table)
        return self.equal[key]

    def _is_tied(self, model: Checkpoint, group: AliasGroup, name: str, source: str) -> bool:
        """Return whether a name that a model does not store stands for one that it stores."""
        ties = self.ties(model)
        if {name, source} <= group.always or ties:
            return True
        if ties is False or model is self.base:
            return False
        if self.base.config is not None:  # a model without a configuration is as the base is
            return bool(self.ties(self.base))
        classes = self._classes(self.base, group, [n for n in group.names if n in self.base.tensors])
        return name in classes and classes[name] == classes.get(source)

    def _replaced(self, model: Checkpoint, source: str) -> NamedValue | None:
        """Return what an adapter replaced under one name, and left as it was under the others."""
        adapter, under = model.adapter, model.under
        if adapter is None or under is None or source not in adapter.replaced or _trained_as_one(model):
            return None
        if source in adapter.folded:  # PEFT loads the table for all names
            return None
        entry = under.tensors.get(source)
        if entry is None or len(entry.shape) != 2 or self.ties(model) is False:
            return None
        return NamedValue(
            entry=entry,
            stored=source,
            key=("replaced", source),
            memory=under.in_memory(source),
            rows=under.computed.get(source),
        )


def _trained_as_one(model: Checkpoint) -> bool:
    """Return whether PEFT trained one update for all names of a tied parameter."""
    return bool(model.adapter and model.adapter.config.get("ensure_weight_tying"))
