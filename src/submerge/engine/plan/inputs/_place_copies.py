"""Models with a tensor under each name that the output has for a parameter of several names."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from submerge.engine.plan.inputs._named_values import ValuesByName
from submerge.engine.plan.inputs._tied_names import TiedNames
from submerge.store import Adapter, Checkpoint, TensorEntry

__all__ = ["CopyPlacer"]


@dataclass
class CopyPlacer:
    """Puts the tensors of models under other names, one parameter after the other."""

    models: dict[int, Checkpoint]
    renamed: dict[tuple[int, str], TensorEntry] = field(default_factory=dict)

    def place(self, group: TiedNames, names: Sequence[str]) -> None:
        """Give every model a tensor under each of these names, and take away copies that say nothing new."""
        keys = group.keys
        present = {keys[name] for name in names if name in keys}
        redundant = {name for name in keys if name not in names and keys[name] in present}
        for position, values in group.values.items():
            own = {name: values[name] for name in names if name in values}
            self.models[position] = self._with(self.models[position], own, redundant)

    def _with(self, model: Checkpoint, own: ValuesByName, redundant: Collection[str]) -> Checkpoint:
        """Return the model with these values under their names, and without the redundant ones."""
        tensors = {name: entry for name, entry in model.tensors.items() if name not in redundant}
        tensors |= {name: self._renamed(value.entry, name) for name, value in own.items()}
        new = {name: value.stored for name, value in own.items() if name not in model.tensors}
        memory = {name: value.memory for name, value in own.items() if value.memory is not None}
        computed = {name: value.rows for name, value in own.items() if value.rows is not None}
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
            computed={**model.computed, **computed},
            adapter=None if model.adapter is None else _adapter_with(model.adapter, own, redundant),
            aliases={**model.aliases, **new},
        )

    def _renamed(self, entry: TensorEntry, name: str) -> TensorEntry:
        """Return the entry under this name.

        It is the same object for the same entry: by that a model under an adapter is known to be the base.
        """
        if entry.name == name:
            return entry
        return self.renamed.setdefault((id(entry), name), replace(entry, name=name))


def _adapter_with(adapter: Adapter, own: ValuesByName, redundant: Collection[str]) -> Adapter:
    """Return the adapter with the parts that belong to these names, in the order of all names."""
    parts = {n: part for n, part in adapter.parts.items() if n not in own and n not in redundant}
    parts |= {name: value.part for name, value in own.items() if value.part is not None}
    return replace(adapter, parts=dict(sorted(parts.items())))
