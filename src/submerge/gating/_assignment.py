"""Which updates act on which rows: one class for each way in which a gate decides.

A gated module asks the assignment that is in force for the `Layout` of its input: groups of rows with the
members whose updates they get. Members are the numbers of the merged models, in the order of the bank.

    by sample   `SampleAssignment`     all positions of a sample get one set of members (MASS)
    by token    `TokenAssignment`      each position gets the member of its stream, text or another (SSAM)
    constant    `ConstantAssignment`   all rows get all members, each by a scale that may be learned (NSC)
    by module   `MixtureAssignment`    no updates act; the members' own modules are mixed by sample (CPM)
    none        `ResidentAssignment`   the model as it is, with its own modules alone or those of all members
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from submerge.gating._batch import cut, tensors

__all__ = [
    "Assignment",
    "ConstantAssignment",
    "Group",
    "Layout",
    "MixtureAssignment",
    "ResidentAssignment",
    "SampleAssignment",
    "Span",
    "TokenAssignment",
    "UnsplitError",
]


class UnsplitError(Exception):
    """An input of a gated module has no rows that an assignment tells apart, so that it cannot be gated."""


@dataclass(frozen=True)
class Span:
    """Samples [start, stop) of the batch, and the members, in ascending order, whose updates they get."""

    members: tuple[int, ...]
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Group:
    """Rows [start, stop) of an arranged input, and the members whose updates they get.

    With `weights` [members] the update is Σ_k w_k Δ_k; without, the members are a set, which the update
    merges by a rule of its own.
    """

    members: tuple[int, ...]
    start: int
    stop: int
    weights: torch.Tensor | None = None

    @property
    def rows(self) -> slice:
        return slice(self.start, self.stop)

    @property
    def size(self) -> int:
        return self.stop - self.start

    @property
    def is_learned(self) -> bool:
        """Whether gradients flow to the weights, so that nothing that depends on them may be stored."""
        return self.weights is not None and self.weights.requires_grad

    def among(self, members: Mapping[int, Any]) -> Group:
        """Return the group with those of its members that are among the given ones."""
        if all(k in members for k in self.members):
            return self
        places = [i for i, k in enumerate(self.members) if k in members]
        weights = None if self.weights is None else self.weights[places]
        return replace(self, members=tuple(self.members[i] for i in places), weights=weights)


@dataclass(frozen=True)
class Layout:
    """The groups of an input's rows [N], without gaps, in an order in which each group is a slice.

    `order` [N] sorts the rows so, and `inverse` undoes it; None: they lie so.
    """

    groups: tuple[Group, ...]
    order: torch.Tensor | None = None
    inverse: torch.Tensor | None = None

    def arrange(self, rows: torch.Tensor) -> torch.Tensor:
        """Return rows [N, …] group by group."""
        return rows if self.order is None else rows[self.order.to(rows.device)]

    def restore(self, rows: torch.Tensor) -> torch.Tensor:
        """Return rows [N, …] that lie group by group in the order of the input."""
        return rows if self.inverse is None else rows[self.inverse.to(rows.device)]


class Assignment(ABC):
    """Which updates act on which rows.

    `spans` are the samples of the batch by their members, where these differ from sample to sample; `leads`
    are the samples by the member whose own module (a head) they use, none: the resident module. `mixture`
    [B, K] are the weights by which the outputs of K members' own modules are mixed, and `every_branch` says
    that the outputs of all members' own modules are wanted, side by side. `window` are the samples of the
    caller's batch that are left, where the assignment was narrowed to one of its spans.
    """

    spans: Sequence[Span] = ()
    leads: Sequence[Span] = ()
    window: slice | None = None
    mixture: torch.Tensor | None = None
    every_branch = False

    def acts_on(self, module: str) -> bool:
        """Return whether updates act in a module; where they do not, its resident parameters are used."""
        return True

    def spread(self, x: torch.Tensor) -> torch.Tensor:
        """Return an input with rows of its own for each sample; what all samples share is repeated."""
        return x

    @abstractmethod
    def layout(self, module: str, positions: Sequence[int]) -> Layout:
        """Return the groups of a module's input [*positions, …], whose rows are its positions, flattened."""

    @abstractmethod
    def split(self, module: str, inputs: Any) -> Iterator[tuple[Group, Any, Assignment]]:
        """Yield each group with its share of inputs of any form, and the assignment that holds within it.

        Raises `UnsplitError` where the inputs cannot be told apart.
        """

    def within(self, span: Span) -> Assignment:
        """Return the assignment of the samples of one span alone."""
        raise UnsplitError


@dataclass(frozen=True)
class SampleAssignment(Assignment):
    """Each sample gets one set of members: spans of samples cover the batch without gaps, the largest first.

    Modules in `resident` use their resident parameters for all samples.
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


class TokenAssignment(Assignment):
    """Each position gets the update of its stream: `labels` [B, L] are members, one a token of the prompt.

    An input of L positions a row has these labels; of several rows a sample (beams) each has the sample's.
    Any other length is that of a decoding step over a cache, or of positions that were picked from the
    prompt: these are all of the `default` stream, text. So a prompt that is fed in parts has to be labelled
    part by part, and one of a single token, which looks like such a step, is better labelled text.

    Examples:
        >>> import torch
        >>> from submerge.gating import TokenAssignment
        >>> streams = TokenAssignment(torch.tensor([[1, 1, 0, 0, 0]]))
        >>> [(group.members, group.size) for group in streams.layout("proj", (1, 5)).groups]
        [((0,), 3), ((1,), 2)]
        >>> [(group.members, group.size) for group in streams.layout("proj", (1, 1)).groups]
        [((0,), 1)]
    """

    def __init__(self, labels: torch.Tensor, default: int = 0) -> None:
        self.labels, self.default = labels, default
        self._layouts: dict[int, Layout] = {}

    def layout(self, module: str, positions: Sequence[int]) -> Layout:
        rows, labels = math.prod(positions), self.labels.numel()
        length = positions[-1] if len(positions) > 1 else self.labels.shape[1]  # [B · L]: flattened before
        if length != self.labels.shape[1] or not rows or rows % labels:
            return Layout((Group((self.default,), 0, rows),))
        if rows not in self._layouts:
            repeated = self.labels.repeat_interleave(rows // labels, dim=0)
            self._layouts[rows] = _sorted(repeated.flatten())
        return self._layouts[rows]

    def split(self, module: str, inputs: Any) -> Iterator[tuple[Group, Any, Assignment]]:
        """Yield all of the inputs where they are of one stream: a module of any kind may mix positions."""
        positions = next((x.shape[:2] for x in tensors(inputs) if x.ndim > 1), ())
        layout = self.layout(module, positions)
        if len(layout.groups) > 1:
            raise UnsplitError
        yield layout.groups[0], inputs, self


def _sorted(labels: torch.Tensor) -> Layout:
    """Return the layout of rows by their labels [N], the most frequent first."""
    counts = torch.bincount(labels).tolist()
    ranked = sorted((k for k, count in enumerate(counts) if count), key=lambda k: -counts[k])
    stops = [sum(counts[k] for k in ranked[: i + 1]) for i in range(len(ranked))]
    groups = tuple(Group((k,), stop - counts[k], stop) for k, stop in zip(ranked, stops, strict=True))
    if len(groups) == 1:
        return Layout(groups)
    place = torch.empty(len(counts), dtype=torch.long)
    place[ranked] = torch.arange(len(ranked))
    order = place.to(labels.device)[labels].argsort(stable=True)
    return Layout(groups, order, order.argsort())


class ConstantAssignment(Assignment):
    """All rows get all members' updates by scales [K], one for all modules or by the module's name.

    Modules that a mapping does not name keep their resident parameters. Scales may be parameters that are
    learned: gradients flow to them, and nothing that depends on them is stored.
    """

    def __init__(self, scales: torch.Tensor | Mapping[str, torch.Tensor]) -> None:
        self.scales = scales

    def acts_on(self, module: str) -> bool:
        return isinstance(self.scales, torch.Tensor) or module in self.scales

    def _group(self, module: str, rows: int) -> Group:
        scales = self.scales if isinstance(self.scales, torch.Tensor) else self.scales[module]
        return Group(tuple(range(len(scales))), 0, rows, scales)

    def layout(self, module: str, positions: Sequence[int]) -> Layout:
        return Layout((self._group(module, math.prod(positions)),))

    def split(self, module: str, inputs: Any) -> Iterator[tuple[Group, Any, Assignment]]:
        yield self._group(module, 1), inputs, self


class ResidentAssignment(Assignment):
    """No updates act: the model runs with the parameters that are resident.

    It differs from no assignment at all in that the model knows itself to be inside of a pass of a gate.
    """

    def __init__(self, *, every_branch: bool = False) -> None:
        self.every_branch = every_branch

    def acts_on(self, module: str) -> bool:
        return False

    def layout(self, module: str, positions: Sequence[int]) -> Layout:
        return Layout((Group((), 0, math.prod(positions)),))

    def split(self, module: str, inputs: Any) -> Iterator[tuple[Group, Any, Assignment]]:
        yield Group((), 0, 0), inputs, self


class MixtureAssignment(ResidentAssignment):
    """No updates act, and the outputs of K members' own modules are mixed by weights [B, K]."""

    def __init__(self, weights: torch.Tensor) -> None:
        super().__init__()
        self.mixture = weights
