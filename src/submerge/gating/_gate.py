"""Which samples of a batch run with which updates: what every gated layer asks while the model runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from submerge.gating._cache import Recent

if TYPE_CHECKING:
    from submerge.routing._sites import Probe

__all__ = ["Gate", "Span", "UnsplitError"]


@dataclass(frozen=True)
class Span:
    """Samples [start, stop) of the batch, and the tasks, in ascending order, whose updates they get."""

    tasks: tuple[int, ...]
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


class UnsplitError(Exception):
    """An input of a gated layer has no dimension of samples, so that it cannot be gated sample by sample."""


class Gate:
    """The state that all gated layers of a model share.

    Outside of a routed pass `spans` is empty, and every layer is the plain layer of the checkpoint. Within
    one they cover the batch without gaps, the largest first; `leads` do so by the task whose own parameters
    (heads) count. `probe` looks at layers' inputs in the first pass. While `sharing`, layers that are
    `shared` stay plain.
    """

    def __init__(self, cache: Recent) -> None:
        self.cache = cache
        self.spans: tuple[Span, ...] = ()
        self.leads: tuple[Span, ...] = ()
        self.probe: Probe | None = None
        self.shared: frozenset[str] = frozenset()
        self.sharing = False

    @property
    def size(self) -> int:
        """The samples of the batch."""
        return self.spans[-1].stop

    @property
    def running(self) -> bool:
        """Whether one of the two passes is on."""
        return bool(self.spans) or self.probe is not None

    def gates(self, layer: str) -> bool:
        """Return whether a layer runs with the samples' own updates now."""
        return bool(self.spans) and not (self.sharing and layer in self.shared)

    @contextmanager
    def over(self, spans: Sequence[Span], leads: Sequence[Span]) -> Iterator[None]:
        """Run what is inside with these spans."""
        before = self.spans, self.leads
        self.spans, self.leads = tuple(spans), tuple(leads)
        try:
            yield
        finally:
            self.spans, self.leads = before

    @contextmanager
    def probing(self, probe: Probe) -> Iterator[None]:
        """Run the first pass inside, with plain layers whose inputs are looked at."""
        before = self.spans, self.leads
        self.spans, self.leads, self.probe = (), (), probe
        try:
            yield
        finally:
            (self.spans, self.leads), self.probe = before, None

    @contextmanager
    def within(self, span: Span) -> Iterator[None]:
        """Run what is inside on the samples of one span alone."""
        leads = [
            Span(lead.tasks, max(lead.start, span.start) - span.start, min(lead.stop, span.stop) - span.start)
            for lead in self.leads
            if max(lead.start, span.start) < min(lead.stop, span.stop)
        ]
        with self.over([Span(span.tasks, 0, span.size)], leads):
            yield

    def slices(self, x: torch.Tensor) -> list[tuple[Span, slice]]:
        """Return each span with its rows of an input that was spread."""
        if len(self.spans) == 1:
            return [(self.spans[0], slice(0, x.shape[0]))]
        each = x.shape[0] // self.size
        return [(span, slice(span.start * each, span.stop * each)) for span in self.spans]

    def spread(self, x: torch.Tensor) -> torch.Tensor:
        """Return an input with one or several rows for each sample; what all samples share is repeated.

        Where all have the same tasks any input will do; else `UnsplitError` says that samples cannot be told
        apart.
        """
        if len(self.spans) == 1:
            return x
        rows = x.shape[0] if x.ndim else 1
        if rows % self.size == 0 and x.ndim:
            return x
        if rows == 1 and x.ndim:
            return x.expand(self.size, *x.shape[1:])
        raise UnsplitError
