"""The weights that a task's file has of a whole checkpoint, and the updates that they are of the base.

The task's own values θ_t are kept, in the dtype that they came in: exact, and half the bytes of a difference
of two models in bfloat16, which needs float32. So Δ_t = θ_t − θ_0 is formed again at export, by blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from submerge.algebra import Dense, Streamed, Update
from submerge.continual._stored_task import StoredTask, TaskLayout
from submerge.continual._task_model import TaskModel
from submerge.continual._tensor_file import TensorFileWriter
from submerge.continual._whole_model import read_values, value_blocks
from submerge.deferred import torch
from submerge.errors import few
from submerge.store import Checkpoint, FileTable, read_elements, torch_dtype

__all__ = ["add_weights", "mean_values", "others_warning", "weight_update"]


def add_weights(file: TensorFileWriter, task: TaskModel, layout: TaskLayout) -> int:
    """Add the values of all that a whole checkpoint changes but its projector; return their bytes."""
    keys = {f"maps.{name}.W": f"{name}.weight" for name in layout.maps}
    keys |= {f"values.{name}": name for name in task.unmeasured(layout)}
    with FileTable() as table:
        return sum(file.add(key, read_values(task.model, name, table)) for key, name in keys.items())


def others_warning(task: str, others: Sequence[str]) -> list[str]:
    """Return that tensors are merged as a mean, if there are some."""
    if not others:
        return []
    what = f"{len(others)} tensors of {task} differ from the base's and are no linear maps of its layers"
    return [f"{what} ({few(list(others))}): they are merged as the mean of the tasks that change them"]


def weight_update(task: StoredTask, name: str, base: Checkpoint, table: FileTable) -> Update:
    """Return Δ_t [m, n] of a linear map, as y = W x has it: read anew, by rows, each time it is used."""
    own, before = task.entry(f"maps.{name}.W"), base.tensors[f"{name}.weight"]
    sources = table.source(own), base.source(before.name, table)
    both = torch.promote_types(torch_dtype(own.dtype), torch_dtype(before.dtype))
    wide, width = torch.promote_types(both, torch.float32), own.shape[1]

    def read(start: int, stop: int) -> torch.Tensor:
        at, count = start * width, (stop - start) * width
        tuned, plain = (
            read_elements(source, entry.dtype, at, count).to(wide)
            for source, entry in zip(sources, (own, before), strict=True)
        )
        return (tuned - plain).view(stop - start, width)

    if task.layout.maps[name].transposed:
        return Dense(read(0, own.shape[0]).T)
    return Streamed((own.shape[0], width), read, wide)


def mean_values(
    name: str,
    tasks: Iterable[tuple[StoredTask, float]],
    base: Checkpoint,
    table: FileTable,
    scale: float,
) -> torch.Tensor:
    """Return θ_0 + λ Σ w_t (θ_t − θ_0) / Σ w_t of a tensor, in the base's dtype.

    Tasks come with w_t; the base's values are those of one that does not change the tensor.
    """
    entry = base.tensors[name]
    weights, sources = [], [(base.source(name, table), entry.dtype)]
    total = 0.0
    for task, weight in tasks:
        total += weight
        if task.has_values(name):
            own = task.entry(f"values.{name}")
            sources.append((table.source(own), own.dtype))
            weights.append(weight)
    merged = torch.empty(entry.numel, dtype=torch_dtype(entry.dtype))
    for at, (before, *values) in value_blocks(sources, entry.numel):
        start = before.double()
        terms = (w * (own.double() - start) for w, own in zip(weights, values, strict=True))
        merged[at] = (start + scale / total * sum(terms)).to(merged.dtype)
    return merged.view(entry.shape)
