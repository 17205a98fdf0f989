"""Which updates act on which rows: one class for each way in which a gate decides.

A gated module asks the assignment that is in force for the `Layout` of its input: groups of rows with the
members whose updates they get. Members are the numbers of the merged models, in the order of the bank.

    by sample   `SampleAssignment`     all positions of a sample get one set of members (MASS)
    by token    `TokenAssignment`      each position has the parameters of its stream, text or another (SSAM)
    constant    `ConstantAssignment`   all rows get all members, each by a scale that may be learned (NSC)
    by module   `MixtureAssignment`    no updates act; the members' own modules are mixed by sample
                `PrototypeAssignment`  the same, by what the module is given (CPM)
    none        `ResidentAssignment`   the model as it is, with its own modules alone or those of all members
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch

from submerge.gating._layout import Group, Layout, Span, UnsplitError

__all__ = ["Assignment", "ConstantAssignment", "ConstantScales", "MixtureAssignment", "ResidentAssignment"]

ModuleScales: TypeAlias = torch.Tensor | Mapping[int, torch.Tensor]
"""Scales of one module: [K], or by member those of its rank-one units [r_k]."""
ConstantScales: TypeAlias = torch.Tensor | Mapping[str, ModuleScales]
"""Scales [K] of all modules, or those of each module by its name."""


class Assignment(ABC):
    """Which updates act on which rows.

    `spans` are the samples of the batch by their members, where these differ from sample to sample; `leads`
    are the samples by the member whose own module (a head) they use, none: the resident module. `mixture`
    [B, K] are the weights by which the outputs of K members' own modules are mixed, and `every_branch` says
    that the outputs of all members' own modules are wanted, side by side. `picks_rows` says that groups are
    rows of one input, of which layouts have the places. `window` are the samples of the caller's batch that
    are left, where the assignment was narrowed to one of its spans.
    """

    spans: Sequence[Span] = ()
    leads: Sequence[Span] = ()
    window: slice | None = None
    mixture: torch.Tensor | None = None
    every_branch = False
    picks_rows = False

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


class ConstantAssignment(Assignment):
    """All rows get all members' updates by scales [K], one for all modules or by the module's name.

    Modules that a mapping does not name keep their resident parameters. A module may have a mapping from
    members to scales [r_k] of their rank-one units, or [1] for all units of a member; a dense update takes
    the mean of these, and members that it does not name act not. Scales may be parameters that are learned:
    gradients flow to them, and nothing that depends on them is stored.

    Examples:
        >>> import torch
        >>> from submerge.gating import ConstantAssignment
        >>> [group] = ConstantAssignment(torch.tensor([1.0, 0.5])).layout("up_proj", (2, 3)).groups
        >>> group.members, group.size, group.weights.tolist()
        ((0, 1), 6, [1.0, 0.5])
    """

    def __init__(self, scales: ConstantScales) -> None:
        self.scales = scales

    def acts_on(self, module: str) -> bool:
        return isinstance(self.scales, torch.Tensor) or module in self.scales

    def _group(self, module: str, rows: int) -> Group:
        scales = self.scales if isinstance(self.scales, torch.Tensor) else self.scales[module]
        if isinstance(scales, torch.Tensor):
            return Group(tuple(range(len(scales))), 0, rows, scales)
        members = tuple(sorted(scales))
        return Group(members, 0, rows, tuple(scales[k] for k in members))

    def layout(self, module: str, positions: Sequence[int]) -> Layout:
        return Layout((self._group(module, math.prod(positions)),))

    def split(self, module: str, inputs: Any) -> Iterator[tuple[Group, Any, Assignment]]:
        yield self._group(module, 1), inputs, self


class ResidentAssignment(Assignment):
    """No updates act: the model runs with the parameters that are resident.

    It differs from no assignment at all in that the model knows itself to be inside of a pass of a gate.

    Examples:
        >>> from submerge.gating import ResidentAssignment
        >>> ResidentAssignment().acts_on("up_proj")
        False
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
    """No updates act, and the outputs of K members' own modules are mixed by weights [B, K].

    Examples:
        >>> import torch
        >>> from submerge.gating import MixtureAssignment
        >>> MixtureAssignment(torch.tensor([[0.9, 0.1]])).acts_on("up_proj")
        False
    """

    def __init__(self, weights: torch.Tensor) -> None:
        super().__init__()
        self.mixture = weights
