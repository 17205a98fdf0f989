"""The merge of a state's tasks, one distinct input after another, from what their files hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from submerge.algebra import LowRank, LpmOptions, Moment, merge_least_squares
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
    update: LowRank
    transposed: bool


@dataclass(frozen=True)
class MapGroup:
    """Linear maps with the same inputs in each of the tasks that have a say there: one Φ serves them all."""

    names: tuple[str, ...]
    tasks: tuple[StoredTask, ...]

    @property
    def updates(self) -> Iterator[tuple[StoredTask, str]]:
        """Every update of a task, in the order of tasks."""
        for task in self.tasks:
            for name in self.names:
                if name in task.layout.maps:
                    yield task, name


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
            owners = list(group.updates)
            parts = rows.split([task.layout.maps[name].rank for task, name in owners])
            for name in group.names:
                own = [(task, part) for (task, of), part in zip(owners, parts, strict=True) if of == name]
                left = torch.cat([task.tensor(name, "B").double() for task, _ in own], dim=1)
                right = torch.cat([part for _, part in own])
                update = LowRank(left, right).scaled(self._lpm.scale)
                yield MergedMap(spelled(f"{name}.weight"), update, own[0][0].layout.maps[name].transposed)

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

        They are the merge of updates E_t A_t of one task each, where A_t has the rows of all of its maps,
        and the unit vectors E_t give each row a place of its own: so maps that share their inputs are
        solved at once.
        """
        rows = [
            torch.cat([a.double() for a in own]) if (own := self._down(task, group)) else None
            for task in group.tasks
        ]
        places = torch.eye(sum(len(a) for a in rows if a is not None), dtype=torch.float64)
        start, updates = 0, []
        for a in rows:
            if a is None:
                updates.append(None)
                continue
            updates.append(LowRank(places[:, start : start + len(a)], a))
            start += len(a)
        moments = (task.moment(group.names[0]) for task in group.tasks)
        merged = merge_least_squares(updates, moments, replace(self._lpm, scale=1.0))
        assert isinstance(merged, LowRank)
        return merged.right

    @staticmethod
    def _down(task: StoredTask, group: MapGroup) -> list[torch.Tensor]:
        return [task.tensor(name, "A") for name in group.names if name in task.layout.maps]
