"""Each sample of a batch gets its own set of members."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from submerge.gating._assignment import Assignment
from submerge.gating._batch import cut, is_plain, tensors
from submerge.gating._layout import Group, Layout, Span, UnsplitError

__all__ = ["SampleAssignment"]


@dataclass(frozen=True)
class SampleAssignment(Assignment):
    """Each sample gets one set of members: spans of samples cover the batch without gaps, the largest first.

    Modules in `resident` use their resident parameters for all samples.

    Examples:
        >>> from submerge.gating import SampleAssignment, Span
        >>> two = SampleAssignment((Span((0,), 0, 3), Span((0, 1), 3, 5)))
        >>> [(group.members, group.size) for group in two.layout("up_proj", (5, 7)).groups]
        [((0,), 21), ((0, 1), 14)]
    """

    spans: Sequence[Span]
    leads: Sequence[Span] = ()
    resident: frozenset[str] = frozenset()
    window: slice | None = None
    _layouts: dict[int, Layout] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def size(self) -> int:
        """The samples of the batch."""
        return self.spans[-1].stop

    def acts_on(self, module: str) -> bool:
        return module not in self.resident

    def spread(self, x: torch.Tensor) -> torch.Tensor:
        """Return an input with one or several rows for each sample.

        Where all have the same members any input will do; else `UnsplitError` says that samples cannot be
        told apart.
        """
        if len(self.spans) == 1:
            return x
        rows = x.shape[0] if x.ndim else 1
        if rows % self.size == 0 and x.ndim:
            return x
        if rows == 1 and x.ndim:
            return x.expand(self.size, *x.shape[1:])
        raise UnsplitError

    def layout(self, module: str, positions: Sequence[int]) -> Layout:
        rows = math.prod(positions)
        if rows not in self._layouts:  # all modules have the same few numbers of rows
            self._layouts[rows] = self._layout(rows)
        return self._layouts[rows]

    def _layout(self, rows: int) -> Layout:
        if len(self.spans) == 1:
            return Layout((Group(self.spans[0].members, 0, rows),))
        each = rows // self.size  # beams and positions: the rows of a sample lie together
        return Layout(tuple(Group(s.members, s.start * each, s.stop * each) for s in self.spans))

    def split(self, module: str, inputs: Any) -> Iterator[tuple[Group, Any, Assignment]]:
        if len(self.spans) == 1:
            yield Group(self.spans[0].members, 0, self.size), inputs, self
            return
        if not is_plain(inputs):  # a cache is for all samples, and is filled once
            raise UnsplitError
        rows = self._rows(inputs)
        each = rows // self.size
        for span in self.spans:
            group = Group(span.members, span.start * each, span.stop * each)
            yield group, cut(inputs, group.rows, rows), self.within(span)

    def _rows(self, inputs: Any) -> int:
        """Return the rows that the inputs have: one or several for each sample."""
        sizes = {x.shape[0] for x in tensors(inputs) if x.ndim}
        fitting = [n for n in sizes if n % self.size == 0]
        if not fitting:
            raise UnsplitError
        return max(fitting)

    def within(self, span: Span) -> SampleAssignment:
        """Return the assignment of the samples of one span alone."""
        cuts = [(lead, max(lead.start, span.start), min(lead.stop, span.stop)) for lead in self.leads]
        leads = [Span(lead.members, a - span.start, b - span.start) for lead, a, b in cuts if a < b]
        first = span.start + (self.window.start if self.window else 0)
        own = (Span(span.members, 0, span.size),)
        return replace(self, spans=own, leads=leads, window=slice(first, first + span.size))
