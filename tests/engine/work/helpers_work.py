"""One tensor in memory, planned by hand, and a target that notes what it gets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from submerge.engine import Input, TensorPlan
from submerge.engine.work import ChunkReader, Range, Workspace
from submerge.engine.work._range_log import RangeLog
from submerge.engine.work._range_target import Run
from submerge.methods import METHODS, Merged
from submerge.store import MemorySource, TensorEntry, dtype_named, torch_dtype

__all__ = ["NotingTarget", "reader_of", "space"]


def space() -> Workspace:
    return Workspace()


def reader_of(
    tensors: Sequence[torch.Tensor],
    method: str | None = "task_arithmetic",
    values: Mapping[str, Any] | None = None,
    *,
    base: torch.Tensor | None = None,
    **plan: Any,
) -> ChunkReader:
    """Return a reader of a tensor of which the models, and the base, have these values."""
    code = dtype_named(tensors[0].dtype)
    assert code is not None
    shape = tuple(tensors[0].shape)
    entry = TensorEntry("w", code, shape, None, 0, 0)
    defaults: dict[str, Any] = {"action": "merge", "dtype": code}
    tensor = TensorPlan(
        name="w",
        shape=shape,
        inputs=tuple(Input(i + 1, entry) for i in range(len(tensors))),
        origin=None if base is None else Input(0, entry),
        method=METHODS[method] if method else None,
        values=_defaults(method, len(tensors)) | dict(values or {}),
        **(defaults | plan),
    )
    sources = [MemorySource(t) for t in ([] if base is None else [base]) + list(tensors)]
    return ChunkReader(tensor, sources, seed=3)


def _defaults(method: str | None, count: int) -> dict[str, Any]:
    """Return the defaults of a method's options, as a plan has them."""
    options = METHODS[method].options if method else ()
    return {o.name: [o.default] * count if o.scope == "model" else o.default for o in options}


class NotingTarget:
    """Takes ranges as `RangeTarget` does, and writes them nowhere."""

    def __init__(self, reader: ChunkReader, done: Sequence[int] = (), *, with_origin: bool = True) -> None:
        self.dtype = torch_dtype(reader.plan.dtype)
        self.done = frozenset(done)
        self.hashed = False
        self.with_origin = with_origin
        self.values: dict[int, torch.Tensor] = {}
        self.finished: list[tuple[int, dict[int, int], Mapping[str, Any], tuple[int, ...]]] = []

    def write(self, start: int, stop: int, runs: Iterable[Run], space: Workspace, log: RangeLog) -> None:
        for values, origin in runs:
            self.values[start] = torch.from_numpy(values + (0 if origin is None else origin))
            start += values.size
        assert start == stop

    def copy(self, start: int, data: memoryview) -> None:
        self.values[start] = torch.frombuffer(bytearray(data), dtype=self.dtype)

    def finish(
        self, one: Range, log: RangeLog, *, merged: Merged | None = None, differs: Sequence[int] = ()
    ) -> None:
        figures = merged.figures if merged else {}
        self.finished.append((one.number, log.nonfinite, figures, tuple(differs)))

    @property
    def all(self) -> torch.Tensor:
        """All that was written, in the order of the elements."""
        return torch.cat([self.values[start] for start in sorted(self.values)])
