"""What a state holds, as figures and as a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from submerge.algebra import Prototypes
from submerge.continual._lpm import StoredTasks
from submerge.continual._manifest import StateManifest
from submerge.continual._state_folder import StateFolder
from submerge.continual._task_projector import all_statistics, group_prototypes, statistics_bytes
from submerge.deferred import torch
from submerge.engine.plan import TaskStatistics, overlaps_of
from submerge.errors import size
from submerge.store import FileTable

__all__ = ["StateStatus", "status_of"]


@dataclass(frozen=True)
class StateStatus:
    """What a state holds: its manifest, and the condition number of each Φ if it was asked for.

    `cosines` are, where tasks have images, those of the nearest prototypes of any two groups of tasks, 1 for
    images that are alike. `overlaps` are, where all have statistics, how much the images of a task overlap
    with those of another that does not share its projector, 0 to 1, as a discriminant sees them; its
    statistics have `statistics_bytes`. `str` is a table of it.
    """

    manifest: StateManifest
    conditions: dict[str, float] | None = None
    cosines: dict[str, dict[str, float]] | None = None
    overlaps: dict[str, dict[str, float]] | None = None
    statistics_bytes: int = 0

    @property
    def bytes(self) -> int:
        """Bytes of all files of the state but its manifest."""
        return sum(record.bytes for record in self.manifest.files)

    @property
    def unlearning_bytes(self) -> int:
        """Bytes that are kept for exact removal alone: each task's own moments, beside one sum of them."""
        own = [task.moment_bytes for task in self.manifest.tasks]
        return sum(own) - max(own, default=0)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights of tasks that are whole checkpoints."""
        return sum(task.weight_bytes for task in self.manifest.tasks)

    @property
    def projector_bytes(self) -> int:
        """Bytes of the tasks' own projectors."""
        return sum(task.projector.bytes for task in self.manifest.tasks if task.projector)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        figures = {
            "bytes": self.bytes,
            "unlearning_bytes": self.unlearning_bytes,
            "projector_bytes": self.projector_bytes,
            "weight_bytes": self.weight_bytes,
            "statistics_bytes": self.statistics_bytes,
        }
        return {
            **asdict(self.manifest),
            **figures,
            "conditions": self.conditions,
            "cosines": self.cosines,
            "overlaps": self.overlaps,
        }

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        manifest = self.manifest
        yield f"base {manifest.base.model} · {manifest.options.statistics} statistics · {size(self.bytes)}"
        width = max(4, *map(len, manifest.names)) if manifest.tasks else 4
        if manifest.tasks:
            yield f"{'task':<{width}}  maps  rank  samples     rows       bytes"
        for task in manifest.tasks:
            rank = "full" if task.weight_bytes else str(task.rank)
            figures = f"{task.maps:4d}  {rank:>4}  {task.samples:7d}  {task.rows:7d}  {size(task.bytes):>10}"
            yield f"{task.name:<{width}}  {figures}"
        if manifest.running:
            yield f"{'Σ':<{width}}  {'':30}  {size(manifest.running.bytes):>10}"
        if self.weight_bytes:
            yield f"weights of whole models: {size(self.weight_bytes)}; the base is needed to export"
        yield self._removal()
        yield from self._projectors()
        if self.conditions:
            worst = max(self.conditions, key=self.conditions.__getitem__)
            yield f"largest condition number of Φ: {self.conditions[worst]:.2g}, of {worst}"

    def _projectors(self) -> Iterator[str]:
        groups = self.manifest.groups
        if not groups:
            return
        yield f"projectors of the tasks' own: {size(self.projector_bytes)}"
        for tasks in groups.values():
            own = [task.projector for task in tasks if task.projector]
            counts = f"prototypes: {sum(p.prototypes for p in own)}, of {sum(p.images for p in own)} images"
            kind = "own projector" if any(p.bytes for p in own) else "the base's projector"
            yield f"  {', '.join(task.name for task in tasks)}: {kind}; {counts}"
        if self.statistics_bytes:
            yield f"statistics of images and questions, for a discriminant: {size(self.statistics_bytes)}"
        yield from _table("cosines of the nearest prototypes, 1 where images are alike", self.cosines or {})
        yield from _table("overlap of images, 1 where a discriminant tells nothing", self.overlaps or {})

    def _removal(self) -> str:
        if not self.manifest.options.keeps_moments:
            return "removal needs a task's adapter and data again: its moments are not kept"
        return f"removal is exact, and costs {size(self.unlearning_bytes)} of moments beside one sum of them"


def _table(title: str, figures: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    if not any(figures.values()):
        return
    yield title
    width = max(6, *map(len, figures))
    yield "  ".join(["", " " * width, *(f"{name:>{width}}" for name in figures)])
    for name, row in figures.items():
        cells = (f"{row[other]:{width}.3f}" if other in row else " " * width for other in figures)
        yield "  ".join(["", f"{name:<{width}}", *cells]).rstrip()


def status_of(folder: StateFolder, manifest: StateManifest, *, condition: bool) -> StateStatus:
    """Return the status of a state; with `condition` each Φ is summed and factorised, which may take long."""
    status = StateStatus(manifest)
    if manifest.groups:
        shown = [task for tasks in manifest.groups.values() for task in tasks]
        status = replace(
            status,
            cosines=_cosines(group_prototypes(folder, manifest)),
            overlaps=_overlaps(all_statistics(folder, manifest)),
            statistics_bytes=sum(statistics_bytes(folder, task) for task in shown),
        )
    if not condition or not manifest.tasks:
        return status
    with FileTable() as table:
        tasks = StoredTasks(folder, manifest, manifest.lpm, table)
        conditions = {group.names[0]: tasks.phi(group).condition() for group in tasks.groups()}
        return replace(status, conditions=conditions)


def _overlaps(tasks: Sequence[TaskStatistics]) -> dict[str, dict[str, float]] | None:
    """Return how much the images of each task overlap with those of tasks with other projectors.

    None without the statistics of all tasks.
    """
    overlaps = overlaps_of(tasks)
    if overlaps is None:
        return None
    return {
        own.name: {
            other.name: float(overlaps[i, j]) for j, other in enumerate(tasks) if own.group != other.group
        }
        for i, own in enumerate(tasks)
    }


def _cosines(prototypes: Mapping[str, torch.Tensor]) -> dict[str, dict[str, float]]:
    """Return, for any two groups of prototypes, the largest cosine of one of each."""
    groups = Prototypes(list(prototypes.values()))
    rows = {name: groups.similarity(means, centred=False).amax(0) for name, means in prototypes.items()}
    return {
        name: {other: float(row[k]) for k, other in enumerate(prototypes) if other != name}
        for name, row in rows.items()
    }
