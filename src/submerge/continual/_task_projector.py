"""What a task's file keeps for CPM: its own projector, prototypes of its images and questions, statistics.

Statistics, by which a discriminant tells tasks apart, stand beside the prototypes that they are about. Files
of earlier versions have none, and these do not look for any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from submerge.algebra import GroupStatistics, Prototypes
from submerge.calibrate import TaskPrototypes
from submerge.continual._manifest import DAMAGED, ProjectorRecord, StateManifest, TaskRecord
from submerge.continual._state_folder import StateFolder
from submerge.continual._tensor_file import TensorFileWriter, read_tensor
from submerge.deferred import torch
from submerge.engine.plan import MUCH_OVERLAP, TaskStatistics, overlaps_of
from submerge.errors import Problem, RequestError
from submerge.store import FileTable, TensorEntry, read_header

__all__ = [
    "IMAGES",
    "PROJECTOR",
    "TEXT",
    "add_projector",
    "all_statistics",
    "group_prototypes",
    "overlap_warning",
    "shared_group",
    "statistics_bytes",
    "stored_prototypes",
    "task_statistics",
]

PROJECTOR = "projector"
IMAGES, TEXT = "prototypes.images", "prototypes.text"
LEAST = 0.005
"""An overlap that is told; what is less is none."""


def shared_group(manifest: StateManifest, task: str, share: str | None) -> str:
    """Return the group of a new task: its own, or that of the task whose projector it shares."""
    if share is None:
        return task
    projector = manifest.task(share, "--share-projector").projector
    if projector is None:
        hint = "share the projector of a task that was added with images"
        raise RequestError(Problem(f"the task {share!r} has no prototypes", "--share-projector", hint))
    return projector.group


def add_projector(
    file: TensorFileWriter,
    own: Mapping[str, torch.Tensor],
    prototypes: TaskPrototypes,
    group: str,
    others: Mapping[str, torch.Tensor],
    before: Sequence[TaskStatistics],
) -> ProjectorRecord:
    """Add a task's own projector, if it has one, and its prototypes; return what the manifest says of them.

    `others` are the prototypes of all groups before it, by their first tasks, and `before` the statistics of
    their tasks.
    """
    size = sum(file.add(f"{PROJECTOR}.{name}", tensor) for name, tensor in own.items())
    file.add(IMAGES, prototypes.images)
    if prototypes.text is not None:
        file.add(TEXT, prototypes.text)
    for name, statistics in ((IMAGES, prototypes.image_statistics), (TEXT, prototypes.text_statistics)):
        for key, tensor in {} if statistics is None else statistics.tensors(name).items():
            file.add(key, tensor)
    nearest, overlap = _overlap(prototypes, group, others, before)
    return ProjectorRecord(size, prototypes.count, len(prototypes.images), group, nearest, overlap)


def _overlap(
    prototypes: TaskPrototypes,
    group: str,
    others: Mapping[str, torch.Tensor],
    before: Sequence[TaskStatistics],
) -> tuple[str, float]:
    """Return the group with which a task's images overlap most, and how much.

    Without statistics of all tasks it is the share of its images that are as near to the other's prototypes.
    """
    names = list(others)
    number = names.index(group) if group in names else len(names)
    own = TaskStatistics("", number, prototypes.image_statistics, prototypes.text_statistics)
    overlaps = overlaps_of([*before, own])
    if overlaps is None:
        return _taken(prototypes, group, others)
    overlap, other = overlaps[-1].max(0)
    return (names[before[int(other)].group], float(overlap)) if overlap > LEAST else ("", 0.0)


def _taken(prototypes: TaskPrototypes, group: str, others: Mapping[str, torch.Tensor]) -> tuple[str, float]:
    """Return the group to which most of a task's images are as near as to its own, and the share of these."""
    own = torch.cat([prototypes.images, *(others[name] for name in others if name == group)])
    rest = {name: means for name, means in others.items() if name != group}
    if not rest or prototypes.vectors is None:
        return "", 0.0
    similarity = Prototypes([own, *rest.values()]).similarity(prototypes.vectors, centred=True)
    nearest, number = similarity[:, 1:].max(1)
    alike = nearest >= similarity[:, 0]  # the same images are as near to either, and cannot be told apart
    counts = number[alike].bincount(minlength=len(rest))
    most = int(counts.argmax())
    share = int(counts[most]) / len(similarity)
    return (list(rest)[most], share) if share else ("", 0.0)


def overlap_warning(record: TaskRecord) -> list[str]:
    """Return that a task's images overlap much with those of another one, if they do, and what to do."""
    own = record.projector
    if own is None or own.overlap <= MUCH_OVERLAP:
        return []
    what = f"the images of {record.name} overlap by {own.overlap:.0%} with those of {own.nearest}"
    shared = f"train it from the projector of {own.nearest}, and add it with --share-projector {own.nearest}"
    hint = f"let questions count: export with --key both; or {shared}"
    return [f"{what}: by images alone the two are not told apart — {hint}"]


def group_prototypes(folder: StateFolder, manifest: StateManifest) -> dict[str, torch.Tensor]:
    """Return the prototypes [m, d] of each group of tasks, by its first task."""
    with FileTable() as table:
        return {
            group: torch.cat([_images(folder, task, table) for task in tasks])
            for group, tasks in manifest.groups.items()
        }


def _images(folder: StateFolder, task: TaskRecord, table: FileTable) -> torch.Tensor:
    """Return the prototypes of a task's images; its file is not read but for them."""
    path = folder.path / task.file
    try:
        return stored_prototypes(read_header(path).entries, table)[IMAGES]
    except KeyError:
        raise RequestError(Problem("has no prototypes", str(path), DAMAGED)) from None


def stored_prototypes(entries: Mapping[str, TensorEntry], table: FileTable) -> dict[str, torch.Tensor]:
    """Return a task's prototypes, of images and of questions, by their names in its file."""
    return {name: read_tensor(entries[name], table) for name in (IMAGES, TEXT) if name in entries}


def stored_statistics(
    entries: Mapping[str, TensorEntry], name: str, table: FileTable
) -> GroupStatistics | None:
    """Return the statistics of a task's images or questions; None where its file has none."""
    own = {key: read_tensor(entry, table) for key, entry in entries.items() if key.startswith(name)}
    return GroupStatistics.from_tensors(own[name], own, name) if name in own else None


def task_statistics(
    name: str, group: int, entries: Mapping[str, TensorEntry], table: FileTable
) -> TaskStatistics:
    """Return the statistics of a task's images and questions, as its file has them."""
    images, questions = (stored_statistics(entries, part, table) for part in (IMAGES, TEXT))
    return TaskStatistics(name, group, images, questions)


def all_statistics(folder: StateFolder, manifest: StateManifest) -> list[TaskStatistics]:
    """Return the statistics of the images and questions of all tasks that have some, group by group."""
    with FileTable() as table:
        return [
            task_statistics(task.name, k, read_header(folder.path / task.file).entries, table)
            for k, tasks in enumerate(manifest.groups.values())
            for task in tasks
        ]


def statistics_bytes(folder: StateFolder, task: TaskRecord) -> int:
    """Return the bytes of the statistics in a task's file."""
    entries = read_header(folder.path / task.file).entries
    parts = (f"{IMAGES}.", f"{TEXT}.")
    return sum(entry.nbytes for key, entry in entries.items() if key.startswith(parts))
