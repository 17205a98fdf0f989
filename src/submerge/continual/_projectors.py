"""The projectors of a state's tasks as they are exported: one for each group, their mean, and their gate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from submerge.continual._stored_task import StoredTask
from submerge.continual._task_projector import IMAGES, TEXT
from submerge.continual._whole_model import read_values
from submerge.deferred import torch
from submerge.engine.output import write_bank_tensors
from submerge.engine.plan import TaskStatistics, bank_rows
from submerge.errors import Problem, RequestError, WorkError, few
from submerge.names import module_names, multimodal_parts
from submerge.store import (
    PROJECTOR_GATE,
    BankTensor,
    Checkpoint,
    FileTable,
    GateRecord,
    MemorySource,
    ProjectorSettings,
    TensorEntry,
    TensorRecord,
    module_key,
    prototype_key,
    question_key,
)

__all__ = ["ProjectorGate", "StoredProjectors"]

KEYS = {IMAGES: prototype_key, TEXT: question_key}
"""What the bank calls prototypes."""


class StoredProjectors:
    """The projectors of tasks that have prototypes.

    Groups are in the order of the names of their first tasks, whatever the order in which tasks were added.
    A group's projector is the mean of its tasks' own projectors, parameter by parameter. A task that shares
    one without having trained it has no part in the mean.

    Raises `RequestError` where the base has no projector.
    """

    def __init__(self, tasks: Sequence[StoredTask], base: Checkpoint, table: FileTable) -> None:
        parts = multimodal_parts(base.shapes)
        if parts is None:
            raise RequestError(Problem("has no projector, and tasks have some", base.label, "see --base"))
        self.module = parts.projector
        self.names = tuple(filter(parts.in_projector, base.tensors))
        self._base, self._table = base, table
        groups: dict[str, list[StoredTask]] = {}
        for task in sorted(tasks, key=lambda task: task.record.name):
            if task.record.projector is not None:
                groups.setdefault(task.record.projector.group, []).append(task)
        self.groups: tuple[tuple[StoredTask, ...], ...] = tuple(map(tuple, groups.values()))

    def entry(self, name: str) -> TensorEntry:
        """Return what the base's files say of a parameter."""
        return self._base.tensors[name]

    def parameter(self, group: int, name: str) -> torch.Tensor:
        """Return a parameter of a group's projector, in the base's dtype."""
        tasks = self.groups[group]
        own = [task.projector(name) for task in tasks if task.has_projector]
        return _mean(own) if own else read_values(self._base, name, self._table)

    def merged(self, name: str) -> torch.Tensor:
        """Return a parameter of the mean of the groups' projectors, in the base's dtype."""
        return _mean([self.parameter(k, name) for k in range(len(self.groups))])

    def saved(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the parameters of the mean of the groups' projectors, by the names of the base's modules."""
        named = module_names(self._base.config, self._base.tensors)
        for name in self.names:
            yield named.get(name, name), self.merged(name)

    @property
    def are_changed(self) -> bool:
        """Whether a task has a projector of its own, which is not the base's."""
        return any(task.has_projector for group in self.groups for task in group)

    @property
    def statistics(self) -> list[list[TaskStatistics]]:
        """The statistics of the images and questions of each group's tasks."""
        return [[task.statistics(k) for task in group] for k, group in enumerate(self.groups)]

    def prototypes(self, group: int, part: str) -> torch.Tensor:
        """Return the prototypes of all tasks of a group, of images or of questions.

        Raises `RequestError` where a task has none of its questions.
        """
        own = [(task, task.prototypes()) for task in self.groups[group]]
        if lacking := [task.record.name for task, found in own if part not in found]:
            what = f"the tasks {', '.join(lacking)} have no questions"
            raise RequestError(Problem(what, "--key", "use image"))
        return torch.cat([found[part] for _, found in own])


class ProjectorGate:
    """What an exported folder has of the gate that mixes projectors: a record, and a bank.

    Raises `RequestError` where questions are to be compared, and a task has none.
    """

    def __init__(self, projectors: StoredProjectors, settings: ProjectorSettings) -> None:
        self._projectors, self._settings = projectors, settings
        parts = (IMAGES,) if settings.key == "image" else (IMAGES, TEXT)
        self._tensors_of = [
            {KEYS[p](k): projectors.prototypes(k, p) for p in parts} for k in range(self.count)
        ]
        if settings.score == "discriminant":
            discriminants = bank_rows(projectors.statistics, settings.key)
            for own, rows in zip(self._tensors_of, discriminants, strict=True):
                own |= rows

    @property
    def count(self) -> int:
        """How many projectors it mixes."""
        return len(self._projectors.groups)

    @property
    def record(self) -> GateRecord:
        """What `submerge.json` says of it."""
        groups = enumerate(self._projectors.groups)
        tasks = sorted((task.record.name, k) for k, group in groups for task in group)
        named = tuple({"name": name, "group": k} for name, k in tasks)
        return GateRecord(PROJECTOR_GATE, named, self._settings.to_mapping())

    def write(self, folder: Path) -> Mapping[str, TensorRecord]:
        """Write the bank into a folder, and return what `submerge.json` says of its tensors.

        Raises `WorkError` where a projector or a prototype has NaN or Inf.
        """
        bank = write_bank_tensors(folder, self._tensors())
        if bank.nonfinite:
            raise WorkError(f"NaN or Inf in {few(bank.nonfinite)} — remove its task, and train it again")
        return bank.tensors

    def _tensors(self) -> Iterator[BankTensor]:
        projectors = self._projectors
        for k in range(self.count):
            for name in projectors.names:
                values = partial(projectors.parameter, k, name)
                yield BankTensor(module_key(k, name), projectors.entry(name), partial(_source, values))
            for key, tensor in self._tensors_of[k].items():
                yield _in_memory(key, tensor)


def _mean(values: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the mean of tensors, formed in float64, in their dtype; a single one is itself."""
    if len(values) == 1:
        return values[0]
    return torch.stack([value.double() for value in values]).mean(0).to(values[0].dtype)


def _source(values: Callable[[], torch.Tensor], _: FileTable) -> MemorySource:
    return MemorySource(values().contiguous())


def _in_memory(key: str, tensor: torch.Tensor) -> BankTensor:
    entry = TensorEntry.in_memory(key, "F32", tuple(tensor.shape))
    return BankTensor(key, entry, partial(_source, tensor.float))
