"""The merged tensors of tasks, with all their values: of tasks of which some are whole checkpoints, mostly.

Such a merge is no adapter of a low rank. Its tensors are written one after another, as an adapter without
factors, which the merge into a checkpoint then lays over the base.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from submerge.algebra import LowRank, Zero, factored
from submerge.continual._lpm import MergedMap, StoredTasks
from submerge.continual._whole_model import read_values
from submerge.deferred import torch
from submerge.names import module_names
from submerge.store import Checkpoint, FileTable, write_values

__all__ = ["MergedTensors"]


@dataclass
class MergedTensors:
    """What tasks make of a base's tensors, one in memory at a time.

    Attributes:
        tasks: of the state.
        base: which is read.
        rank: to which updates of linear maps are cut, if it is given.
        error: ‖Δ − B A‖ / ‖Δ‖ of the map of which that keeps least, among those that were written.
        ranks: of the updates of maps that were written; 0 of one that is dense.
    """

    tasks: StoredTasks
    base: Checkpoint
    rank: int | None
    error: float = field(default=0.0, init=False)
    ranks: set[int] = field(default_factory=set, init=False)

    @property
    def largest(self) -> int:
        """The largest rank of the updates that were written; 0 where one is dense."""
        return max(self.ranks) if self.ranks and 0 not in self.ranks else 0

    def write(self, folder: Path, saved: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Write them into a folder, and `saved` values, which come by the names that adapters have."""
        named = module_names(self.base.config, self.base.tensors)
        stored = {named.get(name, name): name for name in self.base.tensors}
        own = dict(saved)
        changed = [*(f"{name}.weight" for name in self.tasks.maps), *self.tasks.others]
        spelled = {*own, *(named.get(name, name) for name in changed)}
        entries = {name: self.base.tensors[stored[name]] for name in spelled}
        with FileTable() as table:
            merged = ((named.get(name, name), tensor) for name, tensor in self._merged(table))
            write_values(folder, entries, (pair for pairs in (own.items(), merged) for pair in pairs))

    def _merged(self, table: FileTable) -> Iterator[tuple[str, torch.Tensor]]:
        for merged in self.tasks.merged():
            before = read_values(self.base, merged.name, table)
            yield merged.name, self._update(merged) + before
        for name in self.tasks.others:
            yield name, self.tasks.mean(name)

    def _update(self, merged: MergedMap) -> torch.Tensor:
        """Return the update of a weight as it is stored, in float32 or wider."""
        fit = factored(merged.update, self.rank) if self.rank is not None else None
        self.error = max(self.error, fit.error if fit else 0.0)
        update = fit.update if fit else merged.update
        if not isinstance(update, Zero):
            self.ranks.add(update.rank if isinstance(update, LowRank) else 0)
        dense = update.dense()
        return dense.T if merged.transposed else dense
