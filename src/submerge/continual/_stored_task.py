"""The file of a task: its updates by linear map, and what is kept of the moments of their inputs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from submerge.algebra import Moment
from submerge.continual._manifest import DAMAGED, TaskRecord
from submerge.continual._packed import unpacked
from submerge.continual._state_folder import StateFolder
from submerge.continual._task_projector import PROJECTOR, stored_prototypes, task_statistics
from submerge.continual._tensor_file import TensorFileWriter, read_tensor
from submerge.deferred import torch
from submerge.engine.plan import TaskStatistics
from submerge.errors import Problem, RequestError
from submerge.store import Adapter, FileTable, LowRankPart, TensorEntry

__all__ = [
    "StoredMap",
    "StoredTask",
    "TaskLayout",
    "add_factors",
    "add_moment",
    "is_rounded",
    "map_of",
    "stored_moment",
]

LAYOUT = "submerge"
VALUES = "values."
NARROW = ("bfloat16", "float16")


@dataclass(frozen=True)
class StoredMap:
    """A linear map that a task changes by an update of a rank, which is 0 where it is dense.

    `spelled` is what adapters call its weight; `transposed` says that the base stores it as [n, m].
    """

    spelled: str
    transposed: bool
    rank: int


@dataclass(frozen=True)
class TaskLayout:
    """What a task's file holds: the maps that it changes, and the moment that each map's inputs have.

    `inputs` gives for each map that was measured the first one of those with the same inputs, whose moment
    it is.
    """

    maps: Mapping[str, StoredMap]
    inputs: Mapping[str, str]
    task_type: str | None = None

    @property
    def metadata(self) -> dict[str, str]:
        return {LAYOUT: json.dumps(asdict(self), sort_keys=True)}

    @classmethod
    def read(cls, metadata: Mapping[str, str]) -> TaskLayout:
        content = json.loads(metadata[LAYOUT])
        maps = {name: StoredMap(**stored) for name, stored in content["maps"].items()}
        return cls(maps, content["inputs"], content["task_type"])


def map_of(fitted: Adapter) -> dict[str, StoredMap]:
    """Return the linear maps that an adapter changes, by the names of the base's modules."""
    maps = {}
    for name, part in fitted.parts.items():
        assert isinstance(part, LowRankPart)
        maps[name.removesuffix(".weight")] = StoredMap(
            fitted.names.get(name, name), part.transposed, part.rank
        )
    return dict(sorted(maps.items()))


def add_factors(file: TensorFileWriter, fitted: Adapter, *, keep_down: bool) -> dict[str, torch.Tensor]:
    """Add B_t of each map, Δ_t = B_t A_t as y = W x has it, and with `keep_down` A_t; return the A_t [r, n].

    They are stored in the narrowest format that holds them exactly: an adapter in bfloat16 stays one. Beside
    moments of a task's own factors take next to no room; without them they are packed.
    """
    down = {}
    add = file.add if keep_down else file.add_packed
    with FileTable() as table:
        for name, stored in map_of(fitted).items():
            left, right = fitted.factors(f"{name}.weight", table)
            b, a = (right.T, left.T) if stored.transposed else (left, right)
            add(f"maps.{name}.B", _narrowed(b))
            if keep_down:
                add(f"maps.{name}.A", _narrowed(a))
            down[name] = a
    return down


def _narrowed(values: torch.Tensor) -> torch.Tensor:
    for dtype in NARROW:
        narrow = values.to(getattr(torch, dtype))
        if torch.equal(narrow.to(values.dtype), values):
            return narrow.contiguous()
    return values.contiguous()


def add_moment(file: TensorFileWriter, name: str, moment: Moment) -> int:
    """Add the moment of a map's inputs, and return its bytes."""
    return sum(file.add(f"inputs.{name}.{part}", tensor) for part, tensor in moment.tensors().items())


def is_rounded(entries: Mapping[str, TensorEntry], name: str) -> bool:
    """Return whether the moment of a map's inputs was summed and stored in float32."""
    return any(
        (e := entries.get(f"inputs.{name}.{part}")) and e.dtype == "F32" for part in ("triangle", "sum")
    )


def stored_moment(
    entries: Mapping[str, TensorEntry], name: str, table: FileTable, *, as_stored: bool = False
) -> Moment:
    """Return the moment of the inputs of a map, in float64 or the dtype that it is stored in."""
    prefix = f"inputs.{name}."
    parts = {key: entry for key, entry in entries.items() if key.startswith(prefix)}
    own = {part: e for key, e in parts.items() if "." not in (part := key.removeprefix(prefix))}
    tensors = {part: read_tensor(entry, table) for part, entry in own.items()}
    return Moment.from_tensors(tensors, as_stored=as_stored)


class StoredTask:
    """A task of a state, opened: its layout, and its tensors one at a time."""

    def __init__(self, folder: StateFolder, record: TaskRecord, table: FileTable) -> None:
        self.record, self._table = record, table
        self._entries, metadata = folder.entries(record, table)
        try:
            self.layout = TaskLayout.read(metadata)
        except (KeyError, TypeError, ValueError) as error:
            path = str(Path(folder.path) / record.file)
            raise RequestError(Problem(f"is damaged ({error!r})", path, DAMAGED)) from None

    def tensor(self, name: str, part: str) -> torch.Tensor:
        """Return `B` [m, r] of a map, and `A` [r, n], or where moments are not kept `H` = A C [r, n]."""
        key = f"maps.{name}.{part}"
        if key in self._entries:
            return read_tensor(self._entries[key], self._table)
        return unpacked(self._entries, key, lambda entry: read_tensor(entry, self._table))

    def entry(self, key: str) -> TensorEntry:
        """Return what the file says of a tensor in it."""
        return self._entries[key]

    def is_dense(self, name: str) -> bool:
        """Return whether the task has a weight of its own for a map, in the place of factors."""
        return f"maps.{name}.W" in self._entries

    def has_values(self, name: str) -> bool:
        """Return whether the task has values of its own for a tensor that is no linear map."""
        return f"{VALUES}{name}" in self._entries

    @property
    def others(self) -> list[str]:
        """The tensors that are no linear maps and have values of the task's own, by the base's names."""
        return [key.removeprefix(VALUES) for key in self._entries if key.startswith(VALUES)]

    def moment(self, name: str) -> Moment:
        """Return the moment of a map's inputs as it was measured."""
        return stored_moment(self._entries, self.layout.inputs[name], self._table)

    def has_rounded_moment(self, name: str) -> bool:
        """Return whether the moment of a map's inputs was summed and stored in float32."""
        return is_rounded(self._entries, self.layout.inputs[name])

    @property
    def has_projector(self) -> bool:
        """Whether the task has a projector of its own; another one has the base's, or none."""
        own = self.record.projector
        return own is not None and own.bytes > 0

    def projector(self, name: str) -> torch.Tensor:
        """Return a parameter of the task's own projector, by the base's name of it."""
        return read_tensor(self._entries[f"{PROJECTOR}.{name}"], self._table)

    def prototypes(self) -> dict[str, torch.Tensor]:
        """Return the task's prototypes, of images and of questions."""
        return stored_prototypes(self._entries, self._table)

    def statistics(self, group: int) -> TaskStatistics:
        """Return the statistics of the task's images and questions, as those of a task of this group."""
        return task_statistics(self.record.name, group, self._entries, self._table)

    def counts_at(self, name: str, missing: str) -> bool:
        """Return whether the task has a say in a map: by an update, or by its inputs where it has none."""
        return name in (self.layout.maps if missing == "skip" else self.layout.inputs)
