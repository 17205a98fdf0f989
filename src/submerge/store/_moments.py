"""Second moments of a task's inputs in a file, one for each distinct input, read one at a time.

A folder has a file `TASK.safetensors` for each task. Its metadata say which module has which input, and what
the moments were collected from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from submerge.algebra import Moment
from submerge.store._task_file import other_file, read_content, write_task_file

__all__ = ["MomentFile", "StoredMoments", "write_moments"]

FORM = "submerge-moments-1"


@dataclass(frozen=True)
class MomentFile:
    """The moments of one task: where they are, and what the header says of them.

    Attributes:
        path: the file.
        inputs: by the name of a module, that of its input in the file.
        widths: n of each input.
        counts: rows of each input.
        source: what they were collected from, as `write_moments` was told.
    """

    path: Path
    inputs: Mapping[str, str]
    widths: Mapping[str, int]
    counts: Mapping[str, int]
    source: Mapping[str, Any]

    @classmethod
    def open(cls, path: Path) -> MomentFile:
        """Return the moments of a file, of which the header alone is read; raises `RequestError`."""
        content = read_content(path, FORM, "second moments")
        try:
            described = content["moments"]
            return cls(
                path,
                content["inputs"],
                {name: one["width"] for name, one in described.items()},
                {name: one["count"] for name, one in described.items()},
                content["source"],
            )
        except (LookupError, TypeError, AttributeError) as error:
            raise other_file(path, "second moments", error) from error

    def of(self, module: str) -> Moment:
        """Return the moment of a module's inputs, from the file."""
        from safetensors import safe_open

        name = self.inputs[module]
        with safe_open(self.path, "pt") as file:
            parts = [key for key in file.keys() if key.rpartition("/")[0] == name]  # noqa: SIM118
            return Moment.from_tensors({key.rpartition("/")[2]: file.get_tensor(key) for key in parts})


@dataclass(frozen=True)
class StoredMoments(Sequence[Moment]):
    """The moments of one module's inputs on each task, each of which is read when it is asked for."""

    files: tuple[MomentFile, ...]
    module: str

    def __len__(self) -> int:
        return len(self.files)

    @overload
    def __getitem__(self, task: int) -> Moment: ...

    @overload
    def __getitem__(self, task: slice) -> Sequence[Moment]: ...

    def __getitem__(self, task: int | slice) -> Moment | Sequence[Moment]:
        if isinstance(task, slice):
            return StoredMoments(self.files[task], self.module)
        return self.files[task].of(self.module)


def write_moments(path: Path, moments: Mapping[str, Moment], source: Mapping[str, Any]) -> None:
    """Write the moments of modules' inputs, those that are one object once; all of the file or nothing.

    Raises `WorkError` where the disk refuses.
    """
    first_of: dict[int, str] = {}
    inputs = {module: first_of.setdefault(id(moment), module) for module, moment in moments.items()}
    distinct = {name: moments[name] for name in first_of.values()}
    described = {name: {"width": moment.width, "count": moment.count} for name, moment in distinct.items()}
    content = {"inputs": inputs, "moments": described, "source": dict(source)}
    tensors = {
        f"{name}/{part}": tensor
        for name, moment in distinct.items()
        for part, tensor in moment.tensors().items()
    }
    write_task_file(path, tensors, FORM, content, "moments")
