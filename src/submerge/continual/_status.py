"""What a state holds, as figures and as a table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from submerge.continual._lpm import StoredTasks
from submerge.continual._manifest import StateManifest
from submerge.continual._state_folder import StateFolder
from submerge.errors import size
from submerge.store import FileTable

__all__ = ["StateStatus", "status_of"]


@dataclass(frozen=True)
class StateStatus:
    """What a state holds: its manifest, and the condition number of each Φ if it was asked for.

    `str` is a table of it.
    """

    manifest: StateManifest
    conditions: dict[str, float] | None = None

    @property
    def bytes(self) -> int:
        """Bytes of all files of the state but its manifest."""
        return sum(record.bytes for record in self.manifest.files)

    @property
    def unlearning_bytes(self) -> int:
        """Bytes that are kept for exact removal alone: each task's own moments, beside one sum of them."""
        own = [task.moment_bytes for task in self.manifest.tasks]
        return sum(own) - max(own, default=0)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        figures = {"bytes": self.bytes, "unlearning_bytes": self.unlearning_bytes}
        return {**asdict(self.manifest), **figures, "conditions": self.conditions}

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        manifest = self.manifest
        yield f"base {manifest.base.model} · {manifest.options.statistics} statistics · {size(self.bytes)}"
        width = max(4, *map(len, manifest.names)) if manifest.tasks else 4
        if manifest.tasks:
            yield f"{'task':<{width}}  maps  rank  samples     rows       bytes"
        for task in manifest.tasks:
            figures = (
                f"{task.maps:4d}  {task.rank:4d}  {task.samples:7d}  {task.rows:7d}  {size(task.bytes):>10}"
            )
            yield f"{task.name:<{width}}  {figures}"
        if manifest.running:
            yield f"{'Σ':<{width}}  {'':30}  {size(manifest.running.bytes):>10}"
        yield self._removal()
        if self.conditions:
            worst = max(self.conditions, key=self.conditions.__getitem__)
            yield f"largest condition number of Φ: {self.conditions[worst]:.2g}, of {worst}"

    def _removal(self) -> str:
        if self.manifest.options.keep == "none":
            return "removal needs a task's adapter and data again: its moments are not kept"
        return f"removal is exact, and costs {size(self.unlearning_bytes)} of moments beside one sum of them"


def status_of(folder: StateFolder, manifest: StateManifest, *, condition: bool) -> StateStatus:
    """Return the status of a state; with `condition` each Φ is summed and factorised, which may take long."""
    if not condition or not manifest.tasks:
        return StateStatus(manifest)
    with FileTable() as table:
        tasks = StoredTasks(folder, manifest, manifest.lpm, table)
        return StateStatus(manifest, {g.names[0]: tasks.phi(g).condition() for g in tasks.groups()})
