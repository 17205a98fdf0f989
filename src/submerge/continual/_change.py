"""The changes of a state: a task more, a task less. Each writes new files, and returns the new manifest."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from submerge.algebra import LpmOptions, Moment
from submerge.calibrate import TaskPrototypes
from submerge.continual._base import adapter_warnings, open_base
from submerge.continual._manifest import (
    TASK_NAME,
    FileRecord,
    ProjectorRecord,
    StateManifest,
    StateOptions,
    TaskRecord,
)
from submerge.continual._measure import (
    MeasuredTask,
    PrototypeOptions,
    checked_task,
    identity_moments,
    measuring_task,
)
from submerge.continual._passes import Data, Passes, check_options
from submerge.continual._running import RunningSum
from submerge.continual._state_folder import StateFolder
from submerge.continual._stored_task import TaskLayout, add_factors, add_moment
from submerge.continual._stored_weights import add_weights, others_warning
from submerge.continual._task_model import TaskModel, open_task_model
from submerge.continual._task_projector import (
    add_projector,
    all_statistics,
    group_prototypes,
    overlap_warning,
    shared_group,
)
from submerge.continual._tensor_file import TensorFileWriter
from submerge.deferred import torch
from submerge.errors import Problem, RequestError, few
from submerge.store import FileTable

__all__ = ["NewTask", "add_task", "remove_task"]


@dataclass(frozen=True)
class NewTask:
    """A task that is to be added, or measured again: its name, its model, its data, how they are run.

    `base` is where the base is now, if that is another place than the state says. `share` is the task whose
    projector it shares, and `prototypes` how many its images have at most.
    """

    name: str
    model: str
    data: Data
    passes: Passes
    base: str | Path | None = None
    share: str | None = None
    prototypes: int = 1


@dataclass
class _CountedRows:
    """What is noted of a task's moments as they pass: the rows, and the one with the fewest for its width.

    `unreached` are those of no rows.
    """

    lpm: LpmOptions
    rows: int = 0
    fewest: tuple[float, str, Moment] | None = None
    unreached: list[str] = field(default_factory=list)

    def note(self, moments: Iterator[tuple[str, Moment]]) -> Iterator[tuple[str, Moment]]:
        for name, moment in moments:
            self.rows = max(self.rows, round(moment.count))
            share = moment.count / moment.width
            if not moment.count:
                self.unreached.append(name)
            elif moment.kind == "full" and share < 1 and (self.fewest is None or share < self.fewest[0]):
                self.fewest = (share, name, moment)
            yield name, moment

    def check(self, task: NewTask) -> None:
        """Raise `RequestError` where no input has a token that is no padding."""
        if self.rows == 0:
            what = f"no input of {task.name!r} reaches a linear map: all are padding"
            raise RequestError(Problem(what, "--data", "look at the attention mask, and at the texts"))

    @property
    def warnings(self) -> list[str]:
        return [*self._none(), *self._few()]

    def _none(self) -> Iterator[str]:
        if self.unreached:
            what = f"no input reaches {few(self.unreached)}, so that the task has no say there"
            yield f"{what} — add inputs that do"

    def _few(self) -> Iterator[str]:
        if self.fewest is not None:
            _, name, moment = self.fewest
            condition = _condition_of_few(moment, self.lpm)
            what = f"{moment.count:.0f} rows of inputs are few for the {moment.width} inputs of {name}"
            yield f"{what}: the condition number is {condition:.2g} with the ridge — add more samples"


def _condition_of_few(moment: Moment, lpm: LpmOptions) -> float:
    """Return the condition number of a moment of fewer rows than inputs, as it enters the merge.

    C has no full rank, so that its least eigenvalue is the ridge: nothing is factorised.
    """
    if lpm.offdiag != 1:  # then C has full rank
        return lpm.prepared(moment).condition()
    ridge = lpm.ridge * moment.trace / moment.width
    return (moment.largest() + ridge) / ridge if ridge else math.inf


def add_task(folder: StateFolder, manifest: StateManifest, task: NewTask) -> tuple[StateManifest, list[str]]:
    """Write the files of a task, and return the manifest that has it, with warnings.

    Raises `RequestError` where the name is taken, the base or the adapter is another one than can be, or the
    data is.
    """
    _check_name(manifest, task.name)
    check_options({"prototypes": task.prototypes})
    group = shared_group(manifest, task.name, task.share)
    model = open_task_model(task.model, open_base(manifest.base, task.base))
    _check_kept(manifest, model, task)
    warnings = adapter_warnings(model.adapter, manifest.base, model.base) if model.adapter else []
    with FileTable() as table:
        own = model.own_projector(table)
    how = PrototypeOptions(manifest.options.pooling, task.prototypes, bool(own) or task.share is not None)
    counted = _CountedRows(manifest.lpm)
    with (
        _measured(manifest, model, task, how) as measured,
        TensorFileWriter(folder.path, f"tasks/{task.name}") as file,
    ):
        layout = model.layout(measured.inputs)
        down, weight_bytes = _add_updates(file, model, layout, manifest.options)
        projector = _add_projector(file, own, measured.prototypes, group, folder, manifest)
        moments = counted.note(measured.moments)
        moment_bytes, running = _add_moments(folder, manifest, layout, moments, down, file)
        if manifest.options.statistics != "identity":
            counted.check(task)
        stored = file.finish(layout.metadata)
    others = model.unmeasured(layout)
    record = TaskRecord(
        stored.file,
        stored.bytes,
        stored.digest,
        name=task.name,
        rank=model.rank,
        maps=len(layout.maps),
        rows=counted.rows,
        samples=measured.samples,
        adapter=model.digest,
        data=measured.data,
        moment_bytes=moment_bytes,
        projector=projector,
        weight_bytes=weight_bytes,
        others=len(others),
        packed=not manifest.options.keeps_moments,
    )
    if measured.without:
        warnings.append(f"images of {task.name} are not told from those of other tasks: {measured.without}")
    warnings += [
        *model.notes,
        *others_warning(task.name, others),
        *counted.warnings,
        *overlap_warning(record),
    ]
    return manifest.with_task(record, running), warnings


def _check_name(manifest: StateManifest, name: str) -> None:
    if not TASK_NAME.fullmatch(name):
        what = f"{name!r} is no name of a task, which is a part of a file's name"
        hint = "use up to 100 of A-Z, a-z, 0-9, '.', '-' and '_', and begin with a letter or digit: 'week-1'"
        raise RequestError(Problem(what, "--task", hint))
    if name in manifest.names:
        hint = f"choose another name, or remove it first: submerge many remove STATE --task {name}"
        raise RequestError(Problem(f"there is a task {name!r} already", "--task", hint))


def _check_kept(manifest: StateManifest, model: TaskModel, task: NewTask) -> None:
    """Raise `RequestError` for a whole checkpoint where moments are not kept."""
    if model.adapter is None and not manifest.options.keeps_moments:
        what = "is a whole checkpoint, and a state of --keep none has sums of adapters alone"
        hint = (
            f"begin one with --keep full; or submerge extract-lora {task.model} --base … --rank 16 -o ADAPTER"
        )
        raise RequestError(Problem(what, task.model, hint))


@contextmanager
def _measured(
    manifest: StateManifest, model: TaskModel, task: NewTask, how: PrototypeOptions | None
) -> Iterator[MeasuredTask]:
    """Give a task's moments: measured on its data, or before, or those of the identity, which need none.

    With `how` also the prototypes of its images, where the base has a projector.
    """
    how = None if model.parts is None else how
    if isinstance(task.data, MeasuredTask):
        if how is not None and how.needed and task.data.prototypes is None:
            hint = "give its prototypes too: submerge.calibrate.task_prototypes makes them"
            raise RequestError(Problem(f"nothing was measured of the images of {task.name!r}", "data", hint))
        yield checked_task(task.data, model.base, model.maps, manifest.options.statistics)
        return
    identity = manifest.options.statistics == "identity"
    if task.data is None and (not identity or (how is not None and how.needed)):
        hint = "name its inputs with --data, or begin a state with --statistics identity"
        if identity:
            hint = "name some with --data: they tell its images from those of tasks with other projectors"
        raise RequestError(Problem(f"there are no inputs of the task {task.name!r}", "--data", hint))
    if identity:
        yield identity_moments(model, task.data, task.passes, how)
        return
    with measuring_task(
        model,
        task.data,
        manifest.options.statistics,
        task.passes,
        everywhere=manifest.lpm.missing == "zero",
        prototypes=how,
    ) as measured:
        yield measured


def _add_updates(
    file: TensorFileWriter, model: TaskModel, layout: TaskLayout, options: StateOptions
) -> tuple[Mapping[str, torch.Tensor], int]:
    """Write the factors of an adapter, or the weights of a whole checkpoint that differ from the base's.

    Returns the factors A_t [r, n] by linear map, and the bytes of the weights: one of the two is empty.
    """
    if model.updates is None:
        return {}, add_weights(file, model, layout)
    return add_factors(file, model.updates, keep_down=options.keeps_moments), 0


def _add_projector(
    file: TensorFileWriter,
    own: Mapping[str, torch.Tensor],
    prototypes: TaskPrototypes | None,
    group: str,
    folder: StateFolder,
    manifest: StateManifest,
) -> ProjectorRecord | None:
    """Write a task's own projector and its prototypes, where its images have some.

    They are compared with those of the tasks before.
    """
    if prototypes is None:
        return None
    means, statistics = group_prototypes(folder, manifest), all_statistics(folder, manifest)
    return add_projector(file, own, prototypes, group, means, statistics)


def _add_moments(
    folder: StateFolder,
    manifest: StateManifest,
    layout: TaskLayout,
    moments: Iterator[tuple[str, Moment]],
    down: Mapping[str, torch.Tensor],
    file: TensorFileWriter,
) -> tuple[int, FileRecord | None]:
    """Write the moments of a task, or where these are not kept what a state has in their place.

    Returns the bytes of the moments in the task's file, and the file of the sum of all tasks' moments.
    """
    if manifest.options.keeps_moments:
        return sum(add_moment(file, name, moment) for name, moment in moments), None
    return 0, _add_to_sum(folder, manifest, layout, moments, down, file)


def _add_to_sum(
    folder: StateFolder,
    manifest: StateManifest,
    layout: TaskLayout,
    moments: Iterator[tuple[str, Moment]],
    down: Mapping[str, torch.Tensor],
    file: TensorFileWriter,
) -> FileRecord:
    """Write the sum of moments with a task's, and A C of each of its maps; return the sum's file."""
    with RunningSum(folder, manifest.running) as running:
        running.check_inputs(layout.inputs, "the task")
        for name, measured in moments:
            moment = manifest.lpm.prepared(measured)
            running.add(name, moment)
            for own in (own for own, first in layout.inputs.items() if first == name and own in down):
                file.add_packed(f"maps.{own}.H", moment.times(down[own]).to(moment.dtype))
        return running.finish()


def remove_task(
    folder: StateFolder, manifest: StateManifest, name: str, again: NewTask | None
) -> StateManifest:
    """Return the manifest without a task; where moments are not kept, after its data is measured `again`.

    Raises `RequestError` where there is no such task, or its adapter and data are needed and not the same.
    """
    record = manifest.task(name)
    model = None if again is None else open_task_model(again.model, open_base(manifest.base, again.base))
    if again is not None and model is not None and not model.is_as(record.adapter):
        what = f"is another adapter than the one that {name!r} was added with, or has another scale"
        raise RequestError(Problem(what, again.model, "give that one, with the configuration that it had"))
    if manifest.options.keeps_moments or len(manifest.tasks) == 1:
        return manifest.without_task(name, None)
    if again is None or model is None or again.data is None:
        what = f"the moments of {name!r} were not kept: only their sum was (--keep none)"
        hint = (
            "give its adapter and its data again, with --model and --data: they are measured, and subtracted"
        )
        raise RequestError(Problem(what, str(folder.path), hint))
    with _measured(manifest, model, again, None) as measured:
        if measured.data != record.data:
            what = f"the inputs are others than the {record.samples} that {name!r} was added with"
            raise RequestError(
                Problem(what, "--data", "give the same file, samples, length of texts and batch size")
            )
        with RunningSum(folder, manifest.running) as running:
            for own, moment in measured.moments:
                running.subtract(own, manifest.lpm.prepared(moment))
            return manifest.without_task(name, running.finish())
