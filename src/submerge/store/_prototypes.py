"""Prototypes of one task in a file: what a projector is given on its images, as a few vectors.

A folder has a file `TASK.safetensors` for each task: `images` [m, d], and `text` [m, h] where its questions
were looked at, too, in float32. Beside each of them may be `images.sizes`, `images.factor` and
`images.moments`, the statistics by which a discriminant tells tasks apart; files of earlier versions have
none, and these ignore them. The metadata say what all was made of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from submerge.algebra import GroupStatistics
from submerge.deferred import torch
from submerge.store._task_file import other_file, read_content, write_task_file

__all__ = ["PrototypeFile", "write_prototypes"]

FORM = "submerge-prototypes-1"


@dataclass(frozen=True)
class PrototypeFile:
    """The prototypes of one task: where they are, and what the header says of them.

    Attributes:
        path: the file.
        shapes: of its tensors, `images` and perhaps `text`, and of their statistics.
        count: how many inputs of the projector they are made of.
        source: what they were made of, as `write_prototypes` was told.
    """

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    count: int
    source: Mapping[str, Any]

    @classmethod
    def open(cls, path: Path) -> PrototypeFile:
        """Return the prototypes of a file, of which the header alone is read; raises `RequestError`."""
        content = read_content(path, FORM, "prototypes")
        try:
            shapes = {name: tuple(shape) for name, shape in content["shapes"].items()}
            return cls(path, shapes, content["count"], content["source"])
        except (LookupError, TypeError, AttributeError) as error:
            raise other_file(path, "prototypes", error) from error

    def tensor(self, name: str) -> torch.Tensor:
        """Return `images` or `text`, from the file."""
        return self._tensors([name])[name]

    def statistics(self, name: str) -> GroupStatistics | None:
        """Return the statistics of `images` or `text`; None where the file has none."""
        names = [own for own in self.shapes if own == name or own.startswith(f"{name}.")]
        if name not in names:
            return None
        tensors = self._tensors(names)
        return GroupStatistics.from_tensors(tensors[name], tensors, name)

    def _tensors(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, "pt") as file:
                return {name: file.get_tensor(name) for name in names}
        except (OSError, SafetensorError) as error:
            raise other_file(self.path, "prototypes", error) from error


def write_prototypes(
    path: Path, tensors: Mapping[str, torch.Tensor], count: int, source: Mapping[str, Any]
) -> None:
    """Write the prototypes of a task, made of `count` inputs; all of the file or nothing.

    Raises `WorkError` where the disk refuses.
    """
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    content = {"shapes": shapes, "count": count, "source": dict(source)}
    write_task_file(path, tensors, FORM, content, "prototypes")
