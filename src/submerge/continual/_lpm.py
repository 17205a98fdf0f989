"""The merge of a state's tasks, one distinct input after another, from what their files hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce

from submerge.algebra import LowRank, LpmOptions, Moment, Update, merge_least_squares, weighted_sum
from submerge.continual._manifest import StateManifest
from submerge.continual._state_folder import StateFolder
from submerge.continual._stored_task import StoredTask, is_rounded, stored_moment
from submerge.continual._stored_weights import mean_values, weight_update
from submerge.deferred import torch
from submerge.errors import WorkError, few
from submerge.names import respelling
from submerge.store import Checkpoint, FileTable

__all__ = ["MapGroup", "MergedMap", "StoredTasks"]


@dataclass(frozen=True)
class MergedMap:
    """A linear map's merged update [m, n].

    `name` is the base's name of its weight, `spelled` that of adapters; `transposed` says that the weight is
    stored as [n, m].
    """

    name: str
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
    were added; where earlier tasks count less, in the order in which they were added. Their moments count by
    `weights`, 1 by default, as those of the models of a recipe do. The `base` is needed where tasks are whole
    checkpoints, to form their updates.
    """

    def __init__(
        self,
        folder: StateFolder,
        manifest: StateManifest,
        lpm: LpmOptions,
        table: FileTable,
        base: Checkpoint | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        self._lpm, self._table, self._base = lpm, table, base
        self._factors = {
            name: (weights or {}).get(name, 1.0) * lpm.forget**age
            for age, name in enumerate(reversed(manifest.names))
        }
        records = sorted(manifest.tasks, key=lambda task: task.name) if lpm.forget == 1 else manifest.tasks
        self.tasks = tuple(StoredTask(folder, record, table) for record in records)
        self._running = folder.entries(manifest.running, table)[0] if manifest.running else None
        self._uncertain: list[str] = []

    def merged(self) -> Iterator[MergedMap]:
        """Yield the merged update of each linear map that a task changes.

        It is in factors, of float64, where all tasks' updates are, and else dense.
        """
        for group in self.groups():
            dense = [name for name in group.names if any(task.is_dense(name) for task in group.tasks)]
            low_rank = [name for name in group.names if name not in dense]
            merged = self._low_rank(replace(group, names=tuple(low_rank))) if low_rank else {}
            for name, update in merged.items():
                yield self._merged_map(group, name, update)
            for name in dense:
                yield self._merged_map(group, name, self._dense(group, name))

    def _merged_map(self, group: MapGroup, name: str, update: Update) -> MergedMap:
        weight = f"{name}.weight"
        return MergedMap(weight, self._spelled(weight), update, group.transposed(name))

    @cached_property
    def _spelled(self) -> Callable[[str], str]:
        return respelling({f"{n}.weight": m.spelled for n, m in self.tasks[0].layout.maps.items()})

    def _low_rank(self, group: MapGroup) -> dict[str, Update]:
        """Return the merged updates of maps that every task changes by factors, if at all."""
        rows = self._kept_rows(group) if self._running is None else self._running_rows(group)
        terms: dict[str, list[Update]] = {name: [] for name in group.names}
        start = 0
        for task, name in group.updates:
            b = task.tensor(name, "B").double()
            terms[name].append(LowRank(b, rows[start : start + b.shape[1]]))
            start += b.shape[1]
        return {name: weighted_sum(own, [self._lpm.scale] * len(own)) for name, own in terms.items()}

    def _dense(self, group: MapGroup, name: str) -> Update:
        """Return the merged update of a map of which a task has a weight: one matrix at a time."""
        updates = [self._update(task, name) for task in group.tasks]
        return self._solved(group, name, updates, self._lpm)

    def _solved(
        self, group: MapGroup, name: str, updates: Sequence[Update | None], lpm: LpmOptions
    ) -> Update:
        """Return the merge of updates; raise `WorkError` where no task's inputs reach the map."""
        rounded = any(task.has_rounded_moment(name) for task in group.tasks)

        def note(phi: Moment) -> None:
            self._note(name, phi, rounded=rounded)

        try:
            return merge_least_squares(updates, self._moments(group, name), replace(lpm, forget=1.0), note)
        except ValueError as error:
            raise _unreached(group, name, str(error)) from error

    def _update(self, task: StoredTask, name: str) -> Update | None:
        if name not in task.layout.maps:  # it wants the base's responses here
            return None
        if not task.is_dense(name):
            return LowRank(task.tensor(name, "B").double(), task.tensor(name, "A").double())
        assert self._base is not None
        return weight_update(task, name, self._base, self._table)

    @property
    def maps(self) -> list[str]:
        """The linear maps that a task with a weight changes, by the base's names."""
        return sorted({name for task in self._counting for name in task.layout.maps})

    @property
    def others(self) -> list[str]:
        """The tensors that are no linear maps, and that a task with a weight changes, by the base's names."""
        return sorted({name for task in self._counting for name in task.others})

    def mean(self, name: str) -> torch.Tensor:
        """Return the mean of such a tensor over the tasks that have a say there, as `missing` tells."""
        assert self._base is not None
        tasks = [task for task in self._counting if task.has_values(name) or self._lpm.missing == "zero"]
        factors = [(task, self._factor(task)) for task in tasks]
        return mean_values(name, factors, self._base, self._table, self._lpm.scale)

    @property
    def _counting(self) -> list[StoredTask]:
        return [task for task in self.tasks if self._factor(task)]

    def _factor(self, task: StoredTask) -> float:
        """Return w_t γ^k of a task, which k tasks came after."""
        return self._factors[task.record.name]

    def _moments(self, group: MapGroup, name: str) -> Iterator[Moment]:
        """Yield the tasks' moments of a map, each by its factor; no copy is made for a factor of 1."""
        for task in group.tasks:
            moment, factor = task.moment(name), self._factor(task)
            yield moment if factor == 1 else moment.scaled(factor)

    @property
    def task_type(self) -> str | None:
        """What PEFT calls the kind of the tasks' models, where all agree."""
        types = {task.layout.task_type for task in self.tasks}
        return types.pop() if len(types) == 1 else None

    def groups(self) -> list[MapGroup]:
        """Return the maps that tasks change, those together whose inputs are the same in the same tasks."""
        groups: dict[tuple[tuple[int, str], ...], list[str]] = {}
        tasks = self._counting
        for name in self.maps:
            counting = [t for t, task in enumerate(tasks) if task.counts_at(name, self._lpm.missing)]
            key = tuple((t, tasks[t].layout.inputs[name]) for t in counting)
            groups.setdefault(key, []).append(name)
        return [MapGroup(tuple(names), tuple(tasks[t] for t, _ in key)) for key, names in groups.items()]

    def phi(self, group: MapGroup) -> Moment:
        """Return Φ, the sum of the tasks' moments as they enter the merge."""
        if self._running is not None:
            return stored_moment(self._running, group.tasks[0].layout.inputs[group.names[0]], self._table)
        prepared = map(self._lpm.prepared, self._moments(group, group.names[0]))
        return reduce(lambda total, moment: total.added(moment), prepared)

    def _running_rows(self, group: MapGroup) -> torch.Tensor:
        """Return the A C Φ⁻¹ of all updates, one below the other, from the A C that were kept.

        Raises `WorkError` where no task's inputs reach the maps.
        """
        phi, first = self.phi(group), group.names[0]
        if not phi.trace:
            raise _unreached(group, first, "no task has inputs here")
        solved = phi.solve(torch.cat([task.tensor(name, "H") for task, name in group.updates]))
        assert self._running is not None
        self._note(first, phi, rounded=is_rounded(self._running, group.tasks[0].layout.inputs[first]))
        return solved

    def _note(self, name: str, phi: Moment, *, rounded: bool) -> None:
        """Note a Φ that divides by what rounding in float32 may have made, for want of a ridge."""
        if rounded and self._lpm.divides_by_rounding(phi):
            self._uncertain.append(name)

    @property
    def warnings(self) -> list[str]:
        """What of the merge that was made deserves a look."""
        if not self._uncertain:
            return []
        what = f"the sums of moments at {few(self._uncertain)} are in float32, and ill-conditioned for that"
        where = "in directions that hardly any input has, updates are what rounding makes of them"
        return [f"{what}: {where} — give a --ridge of 1e-3, or add the tasks with more inputs"]

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
        merged = self._solved(group, group.names[0], updates, replace(self._lpm, scale=1.0))
        assert isinstance(merged, LowRank)
        return merged.right


def _unreached(group: MapGroup, name: str, why: str) -> WorkError:
    """Return that a map has no merge, because the inputs of no task reach it."""
    tasks = ", ".join(task.record.name for task in group.tasks)
    return WorkError(f"{name}: {why} — remove one of {tasks}, and add it again with inputs that reach it")
