"""Where one input's values, or its update, come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from submerge.deferred import np, npt, torch
from submerge.engine.plan import Input
from submerge.engine.work._adapter_edit import AdapterEdit, AddedUpdate
from submerge.kernels import count_nonfinite, load
from submerge.store import DTYPES, Source, blocks, read_elements

__all__ = ["InputReader", "input_readers"]


@dataclass(frozen=True)
class InputReader:
    """One member of a fold: a source of values and an adapter's edit of them; or only an update.

    `code` is the safetensors dtype of the source, and `position` is its place among those that are read.
    """

    source: Source | None
    code: str
    edit: AdapterEdit | None
    position: int

    @property
    def relative(self) -> bool:
        """Whether it gives an update, with no values behind it."""
        return self.source is None

    def fill(
        self,
        row: npt.NDArray[Any],
        raw: npt.NDArray[Any] | None,
        start: int,
        origin: npt.NDArray[Any] | None = None,
        *,
        edited: bool,
    ) -> int:
        """Put an update, elements from `start` on, into a row: values less the origin's, if there is one.

        `raw` are the same elements as they were read; a relative input has none. Without `edited` values are
        those of the source. Returns how many are NaN or Inf.
        """
        edit = self.edit if edited or raw is None else None
        if raw is not None and edit is None:
            return 0 if load(self.code, raw, row, origin) else count_nonfinite(self.code, raw)
        if raw is not None:
            load(self.code, raw, row)
        if edit is None:
            row[:] = 0
        else:
            self._edit(edit, torch.from_numpy(row), start)
        nonfinite = count_nonfinite(f"F{8 * row.itemsize}", row)
        if raw is not None and origin is not None:
            np.subtract(row, origin, out=row)
        return nonfinite

    def _edit(self, edit: AdapterEdit, row: torch.Tensor, start: int) -> None:
        if self.source is None:
            row.copy_(self._update(start, start + row.numel(), row.dtype))
        else:
            edit.apply_(start, row, lambda first, last: self.read(first, last, row.dtype))

    def read(self, start: int, stop: int, dtype: torch.dtype) -> torch.Tensor:
        """Return elements [start, stop) of the source as they are, without the edit."""
        assert self.source is not None
        return read_elements(self.source, self.code, start, stop - start).to(dtype)

    def reads_as(self, other: InputReader, numel: int) -> bool:
        """Return whether the first `numel` elements of two sources are of one type and have equal bytes."""
        if self.source is None or other.source is None or self.code != other.code or other.edit is not None:
            return False
        itemsize = DTYPES[self.code].itemsize
        pairs = zip(
            blocks(self.source, 0, numel, itemsize), blocks(other.source, 0, numel, itemsize), strict=True
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
        readers.append(InputReader(source, member.entry.dtype, edit, position))
        position += source is not None
    return readers
