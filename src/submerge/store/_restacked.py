"""A model with its layers under other numbers: some of them several times, and some not at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from submerge.names import View
from submerge.store._checkpoint import Checkpoint
from submerge.store.adapter import Adapter
from submerge.store.format import TensorEntry

__all__ = ["Restacker"]


@dataclass
class Restacker:
    """Gives tensors of models other names; models that share a tensor share it under a new name, too.

    So an adapter's model still has the very tensors of the model that it lies on, and its updates are known
    without their values.
    """

    entries: dict[tuple[int, str], TensorEntry] = field(default_factory=dict)

    def model(self, model: Checkpoint, names: Mapping[str, str]) -> Checkpoint:
        """Return a model that has under each name the tensor which `names` maps it to.

        Its adapter's parts go by the same names. A tensor may have several new names. Those that `names`
        leaves out the model has no more.
        """
        if all(new == old for new, old in names.items()) and len(names) == len(model.tensors):
            return model
        moved = {new: old for new, old in names.items() if new != old or old in model.views}
        under = model.under
        return replace(
            model,
            tensors={new: self._entry(model.tensors[old], new) for new, old in names.items()},
            views={new: View.of(old, model.tensors[old].shape) for new, old in moved.items()},
            stored=model,
            under=under and self.model(under, {n: o for n, o in names.items() if o in under.tensors}),
            adapter=model.adapter and _restacked(model.adapter, names),
            aliases={new: model.aliases[old] for new, old in names.items() if old in model.aliases},
        )

    def _entry(self, entry: TensorEntry, name: str) -> TensorEntry:
        if entry.name == name:
            return entry
        return self.entries.setdefault((id(entry), name), replace(entry, name=name))


def _restacked(adapter: Adapter, names: Mapping[str, str]) -> Adapter:
    """Return an adapter by the new names of the tensors that it changes."""
    return replace(
        adapter,
        parts={new: adapter.parts[old] for new, old in names.items() if old in adapter.parts},
        names={new: adapter.names[old] for new, old in names.items() if old in adapter.names},
        replaced=frozenset(new for new, old in names.items() if old in adapter.replaced),
    )
