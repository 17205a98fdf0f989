"""The bank of projectors whose outputs are mixed: each of them, and the prototypes of their tasks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from submerge.deferred import torch
from submerge.engine.output._bank import trained_values
from submerge.engine.plan import MergePlan, bank_rows
from submerge.store import (
    BankTensor,
    Checkpoint,
    FileTable,
    MemorySource,
    PrototypeFile,
    Source,
    TensorEntry,
    module_key,
    prototype_key,
    question_key,
    read_elements,
    torch_dtype,
)

__all__ = ["projector_bank"]


def projector_bank(plan: MergePlan) -> Iterator[BankTensor]:
    """Yield `modules.k.NAME`, `prototypes.k` and, where texts count, `questions.k` of each projector k.

    NAME is the checkpoint's; a projector has the prototypes of all of its tasks. By a discriminant there are
    its rows for all prototypes, too.
    """
    assert plan.projectors is not None
    rules = plan.projectors.settings
    if rules.score == "discriminant":
        for rows in bank_rows(plan.projectors.statistics, rules.key):
            yield from (_in_memory(key, tensor) for key, tensor in rows.items())
    for number, group in enumerate(plan.projectors.groups):
        for name in plan.projectors.names:
            yield _parameter(module_key(number, name), [plan.models[model] for model in group.models], name)
        files = [plan.projectors.prototypes[task] for task in group.tasks]
        yield _joined(prototype_key(number), files, "images")
        if rules.key != "image":
            yield _joined(question_key(number), files, "text")


def _in_memory(key: str, tensor: torch.Tensor) -> BankTensor:
    entry = TensorEntry.in_memory(key, "F32", tuple(tensor.shape))
    return BankTensor(key, entry, lambda _: MemorySource(tensor.contiguous()))


def _parameter(key: str, models: Sequence[Checkpoint], name: str) -> BankTensor:
    """Return a parameter as it was trained, of several models the mean."""
    each = [trained_values(key, model, name) for model in models]
    return each[0] if len(each) == 1 else BankTensor(key, each[0].entry, partial(_mean, each))


def _mean(each: Sequence[BankTensor], table: FileTable) -> Source:
    dtype = torch_dtype(each[0].entry.dtype)
    values = [read_elements(one.open(table), one.entry.dtype, 0, one.entry.numel) for one in each]
    return MemorySource(torch.stack([own.double() for own in values]).mean(0).to(dtype))


def _joined(key: str, files: Sequence[PrototypeFile], part: str) -> BankTensor:
    """Return what several tasks have of one part, one below the other."""
    rows, width = sum(file.shapes[part][0] for file in files), files[0].shapes[part][1]
    entry = TensorEntry.in_memory(key, "F32", (rows, width))
    return BankTensor(key, entry, partial(_source, files, part))


def _source(files: Sequence[PrototypeFile], part: str, table: FileTable) -> Source:
    return MemorySource(torch.cat([file.tensor(part).float() for file in files]))
