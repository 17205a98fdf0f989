"""Second moments of a task's inputs in a file, one for each distinct input, read one at a time.

A folder has a file `TASK.safetensors` for each task. Its metadata say which module has which input, and what
the moments were collected from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from submerge.algebra import LayerKind, Moment
from submerge.store._task_file import other_file, read_content, write_task_file

__all__ = ["MomentFile", "StoredMoments", "write_moments"]

FORM = "submerge-moments-1"


@dataclass(frozen=True)
class MomentFile:
    """The moments of one task: where they are, and what the header says of them.

    Attributes:
        path: the file.
        inputs: by the name of a layer, that of its input in the file.
        kinds: by the name of a layer, its kind; those that are not named are linear maps.
        widths: n of each input.
        counts: rows of each input.
        source: what they were collected from, as `write_moments` was told.
    """

    path: Path
    inputs: Mapping[str, str]
    kinds: Mapping[str, LayerKind]
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
                content.get("kinds", {}),
                {name: one["width"] for name, one in described.items()},
                {name: one["count"] for name, one in described.items()},
                content["source"],
            )
        except (LookupError, TypeError, AttributeError) as error:
            raise other_file(path, "second moments", error) from error

    def kind(self, layer: str) -> LayerKind:
        """Return the kind of a layer."""
        return self.kinds.get(layer, "linear")

    def width(self, layer: str) -> int:
        """Return n of a layer's input."""
        return self.widths[self.inputs[layer]]

    def of(self, module: str) -> Moment:
        """Return the moment of a module's inputs, from the file."""
        from safetensors import safe_open

        name = self.inputs[module]
        with safe_open(self.path, "pt") as file:
            parts = [key for key in file.keys() if key.rpartition("/")[0] == name]  # noqa: SIM118
            return Moment.from_tensors({key.rpartition("/")[2]: file.get_tensor(key) for key in parts})

    def is_rounded(self, module: str) -> bool:
        """Return whether the sums of a module's inputs are in float32."""
        from safetensors import safe_open

        keys = {f"{self.inputs[module]}/{part}" for part in ("triangle", "sum")}
        with safe_open(self.path, "pt") as file:
            return any(file.get_slice(key).get_dtype() == "F32" for key in keys & set(file.keys()))


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

    @property
    def rounded(self) -> bool:
        """Whether a task's sums are in float32."""
        return any(file.is_rounded(self.module) for file in self.files)


def write_moments(
    path: Path,
    moments: Mapping[str, Moment],
    source: Mapping[str, Any],
    kinds: Mapping[str, LayerKind] | None = None,
) -> None:
    """Write the moments of layers' inputs, those that are one object once; all of the file or nothing.

    `kinds` are those of layers that are no linear maps. Raises `WorkError` where the disk refuses.
    """
    first_of: dict[int, str] = {}
    inputs = {module: first_of.setdefault(id(moment), module) for module, moment in moments.items()}
    distinct = {name: moments[name] for name in first_of.values()}
    described = {name: {"width": moment.width, "count": moment.count} for name, moment in distinct.items()}
    others = {name: kind for name, kind in (kinds or {}).items() if kind != "linear"}
    content = {"inputs": inputs, "kinds": others, "moments": described, "source": dict(source)}
    tensors = {
        f"{name}/{part}": tensor
        for name, moment in distinct.items()
        for part, tensor in moment.tensors().items()
    }
    write_task_file(path, tensors, FORM, content, "moments")
