"""Where one input's values, or its update, come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from submerge.deferred import torch
from submerge.engine.plan import Input, torch_dtype
from submerge.engine.work._adapter_edit import Patch, Sum
from submerge.engine.work._workspace import Workspace
from submerge.store import Source, byte_view

__all__ = ["Feed", "feeds"]


@dataclass(frozen=True)
class Feed:
    """One member of a fold: a source of values and an adapter's patch on them; or only an update.

    `position` is that of the source among those that are read.
    """

    source: Source | None
    dtype: torch.dtype
    patch: Patch | None
    position: int

    @property
    def relative(self) -> bool:
        """Whether it gives an update, with no values behind it."""
        return self.source is None

    def fill(self, start: int, row: torch.Tensor, space: Workspace, hashers: Sequence[Any]) -> None:
        """Put elements from `start` on into `row`: values, or the update of a relative one."""
        n = row.numel()
        if self.source is None:
            row.copy_(self._update(start, start + n, row.dtype))
            return
        raw, view = space.host("raw", n, self.dtype)
        self.source.read(start, n, view)
        if hashers:
            hashers[self.position].update(view)
        space.bring(raw, row)
        if self.patch is not None:
            self.patch.change(start, row, lambda first, last: self.read(first, last, row.dtype))

    def read(self, start: int, stop: int, dtype: torch.dtype) -> torch.Tensor:
        """Return elements [start, stop) of the source as they are, without the patch."""
        assert self.source is not None
        raw = torch.empty(stop - start, dtype=self.dtype)
        self.source.read(start, stop - start, byte_view(raw))
        return raw.to(dtype)

    def difference(self, origin: Feed | None, start: int, stop: int, dtype: torch.dtype) -> torch.Tensor:
        """Return elements [start, stop) of the update against `origin`, in new memory."""
        if self.source is None:
            return self._update(start, stop, dtype)
        values = self._values(start, stop, dtype)
        return values if origin is None else values.sub_(origin._values(start, stop, dtype))

    def _values(self, start: int, stop: int, dtype: torch.dtype) -> torch.Tensor:
        values = self.read(start, stop, dtype)
        if self.patch is not None:
            self.patch.change(start, values, lambda first, last: self.read(first, last, dtype))
        return values

    def _update(self, start: int, stop: int, dtype: torch.dtype) -> torch.Tensor:
        if self.patch is None:
            return torch.zeros(stop - start, dtype=dtype)
        assert isinstance(self.patch, Sum)  # what else is relative
        return self.patch.update(start, stop).to(dtype)


def feeds(members: Sequence[Input], sources: Sequence[Source], patches: Sequence[Patch | None]) -> list[Feed]:
    """Return a feed for each member of a fold; `sources` are those of the members that are read."""
    result: list[Feed] = []
    position = 0
    for member, patch in zip(members, patches, strict=True):
        source = None if member.relative else sources[position]
        result.append(Feed(source, torch_dtype(member.entry.dtype), patch, position))
        position += source is not None
    return result
