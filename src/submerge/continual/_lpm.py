"""The merge of a state's tasks, one distinct input after another, from what their files hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from submerge.algebra import LowRank, LpmOptions, Moment, Update, merge_least_squares, weighted_sum
from submerge.continual._manifest import StateManifest
from submerge.continual._state_folder import StateFolder
from submerge.continual._stored_task import StoredTask, stored_moment
from submerge.deferred import torch
from submerge.names import respelling
from submerge.store import FileTable

__all__ = ["MapGroup", "MergedMap", "StoredTasks"]


@dataclass(frozen=True)
class MergedMap:
    """A linear map's merged update [m, n].

    `spelled` is what adapters call its weight; `transposed` says that this is stored as [n, m].
    """

    spelled: str
    update: Update
    transposed: bool


@dataclass(frozen=True)
class MapGroup:
    """Linear maps with the same inputs in each of the tasks that have a say there: one Φ serves them all."""

    names: tuple[str, ...]
    tasks: tuple[StoredTask, ...]

    @property
    def updates(self) -> list[tuple[StoredTask, str]]:
        """Every update of a map by a task, in the order of tasks."""
        return [(task, name) for task in self.tasks for name in self.names if name in task.layout.maps]

    def transposed(self, name: str) -> bool:
        """Return whether the base stores a map as [n, m]."""
        return next(task.layout.maps[name].transposed for task, own in self.updates if own == name)


class StoredTasks:
    """The tasks of a state, opened to be merged.

    They are taken in the order of their names, so that the merge does not depend on the order in which they
    were added; where earlier tasks count less, in the order in which they were added.
    """

    def __init__(
        self, folder: StateFolder, manifest: StateManifest, lpm: LpmOptions, table: FileTable
    ) -> None:
        self._lpm, self._table = lpm, table
        records = sorted(manifest.tasks, key=lambda task: task.name) if lpm.forget == 1 else manifest.tasks
        self.tasks = tuple(StoredTask(folder, record, table) for record in records)
        self._running = folder.entries(manifest.running)[0] if manifest.running else None

    def merged(self) -> Iterator[MergedMap]:
        """Yield the merged update of each linear map that a task changes, in float64."""
        spelled = respelling({f"{n}.weight": m.spelled for n, m in self.tasks[0].layout.maps.items()})
        for group in self.groups():
            rows = self._kept_rows(group) if self._running is None else self._running_rows(group)
            terms: dict[str, list[Update]] = {name: [] for name in group.names}
            start = 0
            for task, name in group.updates:
                b = task.tensor(name, "B").double()
                terms[name].append(LowRank(b, rows[start : start + b.shape[1]]))
                start += b.shape[1]
            for name, own in terms.items():
                update = weighted_sum(own, [self._lpm.scale] * len(own))
                yield MergedMap(spelled(f"{name}.weight"), update, group.transposed(name))

    @property
    def task_type(self) -> str | None:
        """What PEFT calls the kind of the tasks' models, where all agree."""
        types = {task.layout.task_type for task in self.tasks}
        return types.pop() if len(types) == 1 else None

    def groups(self) -> list[MapGroup]:
        """Return the maps that tasks change, those together whose inputs are the same in the same tasks."""
        groups: dict[tuple[tuple[int, str], ...], list[str]] = {}
        for name in sorted({name for task in self.tasks for name in task.layout.maps}):
            counting = [t for t, task in enumerate(self.tasks) if task.counts_at(name, self._lpm.missing)]
            key = tuple((t, self.tasks[t].layout.inputs[name]) for t in counting)
            groups.setdefault(key, []).append(name)
        return [MapGroup(tuple(names), tuple(self.tasks[t] for t, _ in key)) for key, names in groups.items()]

    def phi(self, group: MapGroup) -> Moment:
        """Return Φ, the sum of the tasks' moments as they enter the merge."""
        if self._running is not None:
            return stored_moment(self._running, group.tasks[0].layout.inputs[group.names[0]], self._table)
        total: Moment | None = None
        for age, task in enumerate(reversed(group.tasks)):
            moment = self._lpm.prepared(task.moment(group.names[0])).scaled(self._lpm.forget**age)
            total = moment if total is None else total.added(moment)
        assert total is not None
        return total

    def _running_rows(self, group: MapGroup) -> torch.Tensor:
        """Return the A C Φ⁻¹ of all updates, one below the other, from the A C that were kept."""
        return self.phi(group).solve(torch.cat([task.tensor(name, "H") for task, name in group.updates]))

    def _kept_rows(self, group: MapGroup) -> torch.Tensor:
        """Return the A C Φ⁻¹ of all updates, one below the other.

        They are the merge of updates E_t A_t of one task each, where A_t has the rows of all of its maps, and
        the unit vectors E_t give each row a place of its own: so maps that share their inputs are solved at
        once.
        """
        updates: list[LowRank | None] = []
        total = sum(task.layout.maps[name].rank for task, name in group.updates)
        places, start = torch.eye(total, dtype=torch.float64), 0
        for task in group.tasks:
            rows = [task.tensor(name, "A").double() for own, name in group.updates if own is task]
            if rows:
                down = torch.cat(rows)
                updates.append(LowRank(places[:, start : start + len(down)], down))
                start += len(down)
            else:  # it wants the base's responses here
                updates.append(None)
        moments = (task.moment(group.names[0]) for task in group.tasks)
        merged = merge_least_squares(updates, moments, replace(self._lpm, scale=1.0))
        assert isinstance(merged, LowRank)
        return merged.right
