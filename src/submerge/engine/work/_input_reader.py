"""Where one input's values, or its update, come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from submerge.deferred import torch
from submerge.engine.plan import Input, torch_dtype
from submerge.engine.work._adapter_edit import AdapterEdit, AddedUpdate
from submerge.engine.work._range_log import RangeLog
from submerge.engine.work._workspace import Workspace
from submerge.store import Source, blocks, byte_view

__all__ = ["InputReader", "input_readers"]


@dataclass(frozen=True)
class InputReader:
    """One member of a fold: a source of values and an adapter's edit of them; or only an update.

    `position` is that of the source among those that are read.
    """

    source: Source | None
    dtype: torch.dtype
    edit: AdapterEdit | None
    position: int

    @property
    def relative(self) -> bool:
        """Whether it gives an update, with no values behind it."""
        return self.source is None

    def read_into(self, start: int, row: torch.Tensor, space: Workspace, log: RangeLog | None = None) -> None:
        """Put elements from `start` on into `row`: values, or the update of a relative one.

        `log` takes in the bytes that are read.
        """
        n = row.numel()
        if self.source is None:
            row.copy_(self._update(start, start + n, row.dtype))
            return
        raw, view = space.host("raw", n, self.dtype)
        self.source.read(start, n, view)
        if log is not None:
            log.read(self.position, view)
        space.bring(raw, row)
        if self.edit is not None:
            self.edit.apply_(start, row, lambda first, last: self.read(first, last, row.dtype))

    def read(self, start: int, stop: int, dtype: torch.dtype) -> torch.Tensor:
        """Return elements [start, stop) of the source as they are, without the edit."""
        assert self.source is not None
        raw = torch.empty(stop - start, dtype=self.dtype)
        self.source.read(start, stop - start, byte_view(raw))
        return raw.to(dtype)

    def reads_as(self, other: InputReader, numel: int) -> bool:
        """Return whether the first `numel` elements of two sources are of one type and have equal bytes."""
        if self.source is None or other.source is None or self.dtype != other.dtype or other.edit is not None:
            return False
        pairs = zip(
            blocks(self.source, 0, numel, self.dtype.itemsize),
            blocks(other.source, 0, numel, self.dtype.itemsize),
            strict=True,
        )
        return all(
            torch.equal(torch.frombuffer(own, dtype=torch.uint8), torch.frombuffer(others, dtype=torch.uint8))
            for (_, own), (_, others) in pairs
        )

    def edited(self, start: int, stop: int, dtype: torch.dtype) -> torch.Tensor:
        """Return elements [start, stop) of the source with the edit."""
        values = self.read(start, stop, dtype)
        if self.edit is not None:
            self.edit.apply_(start, values, lambda first, last: self.read(first, last, dtype))
        return values

    def difference(
        self, origin: InputReader | None, start: int, stop: int, dtype: torch.dtype
    ) -> torch.Tensor:
        """Return elements [start, stop) of the update against `origin`, in new memory."""
        if self.source is None:
            return self._update(start, stop, dtype)
        values = self.edited(start, stop, dtype)
        return values if origin is None else values.sub_(origin.edited(start, stop, dtype))

    def _update(self, start: int, stop: int, dtype: torch.dtype) -> torch.Tensor:
        if self.edit is None:
            return torch.zeros(stop - start, dtype=dtype)
        assert isinstance(self.edit, AddedUpdate)  # what else is relative
        return self.edit.update(start, stop).to(dtype)


def input_readers(
    members: Sequence[Input], sources: Sequence[Source], edits: Sequence[AdapterEdit | None]
) -> list[InputReader]:
    """Return a reader for each member of a fold; `sources` are those of the members that are read."""
    readers: list[InputReader] = []
    position = 0
    for member, edit in zip(members, edits, strict=True):
        source = None if member.relative else sources[position]
        readers.append(InputReader(source, torch_dtype(member.entry.dtype), edit, position))
        position += source is not None
    return readers
