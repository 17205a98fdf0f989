"""What a state holds, as figures and as a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from submerge.algebra import Prototypes
from submerge.continual._lpm import StoredTasks
from submerge.continual._manifest import StateManifest
from submerge.continual._state_folder import StateFolder
from submerge.continual._task_projector import group_prototypes
from submerge.deferred import torch
from submerge.errors import size
from submerge.store import FileTable

__all__ = ["StateStatus", "status_of"]


@dataclass(frozen=True)
class StateStatus:
    """What a state holds: its manifest, and the condition number of each Φ if it was asked for.

    `cosines` are, where tasks have images, those of the nearest prototypes of any two groups of tasks, 1 for
    images that are alike. `str` is a table of it.
    """

    manifest: StateManifest
    conditions: dict[str, float] | None = None
    cosines: dict[str, dict[str, float]] | None = None

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
        }
        return {
            **asdict(self.manifest),
            **figures,
            "conditions": self.conditions,
            "cosines": self.cosines,
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
        yield from _table(self.cosines or {})

    def _removal(self) -> str:
        if self.manifest.options.keep == "none":
            return "removal needs a task's adapter and data again: its moments are not kept"
        return f"removal is exact, and costs {size(self.unlearning_bytes)} of moments beside one sum of them"


def _table(cosines: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    if len(cosines) < 2:
        return
    yield "cosines of the nearest prototypes, 1 where images are alike"
    width = max(6, *map(len, cosines))
    yield "  ".join(["", " " * width, *(f"{name:>{width}}" for name in cosines)])
    for name, row in cosines.items():
        cells = (f"{row[other]:{width}.3f}" if other in row else " " * width for other in cosines)
        yield "  ".join(["", f"{name:<{width}}", *cells]).rstrip()


def status_of(folder: StateFolder, manifest: StateManifest, *, condition: bool) -> StateStatus:
    """Return the status of a state; with `condition` each Φ is summed and factorised, which may take long."""
    cosines = _cosines(group_prototypes(folder, manifest)) if manifest.groups else None
    if not condition or not manifest.tasks:
        return StateStatus(manifest, None, cosines)
    with FileTable() as table:
        tasks = StoredTasks(folder, manifest, manifest.lpm, table)
        conditions = {group.names[0]: tasks.phi(group).condition() for group in tasks.groups()}
        return StateStatus(manifest, conditions, cosines)


def _cosines(prototypes: Mapping[str, torch.Tensor]) -> dict[str, dict[str, float]]:
    """Return, for any two groups of prototypes, the largest cosine of one of each."""
    groups = Prototypes(list(prototypes.values()))
    rows = {name: groups.similarity(means, centred=False).amax(0) for name, means in prototypes.items()}
    return {
        name: {other: float(row[k]) for k, other in enumerate(prototypes) if other != name}
        for name, row in rows.items()
    }
