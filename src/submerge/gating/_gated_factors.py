"""What members add to one parameter: low-rank factors, dense updates, or the factors of a table.

For a group of N rows a linear map [m, n] with R = Σ_{k∈S} r_k has two exact forms:

    W x + U (M (V x))      2 N R (m + n) operations beside those of W x
    (W + U M V) x          2 m n R operations and a new m × n matrix, once for the group

so that the second is taken where N R (m + n) > m n (R + c); to copy an element takes as long as c products.
There is one W for all groups, and no copy of the model. V_k x is computed for the members of the group alone:
with one member a sample, V x of all members for all samples would cost as much as W x itself.

Updates count from the base's values, θ_0. A merged folder does not hold them: its checkpoint is the merge
θ_MT = θ_0 + Δ_MT, of the same factors, so that θ_0 = θ_MT − U M_all V is found once, when a model is loaded,
by the function that made θ_MT: exact to float32's rounding (in a 16-bit checkpoint, to that of θ_MT itself).
To add U_S M_S V_S − U M_all V at each pass instead would need the factors of all members, which cost as
much as W x or twice that. So θ_0 is what is resident; θ_MT stays beside it only where a pass without updates
is one of the merge.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch

from submerge.algebra import Bank, LowRank, Triplets
from submerge.gating._gate import Gate
from submerge.gating._gated_update import GatedUpdate
from submerge.gating._layout import Group

__all__ = ["GatedFactors", "GatedTable"]

COPY = 32
"""Multiply-adds of a matrix product in the time that it takes to copy an element."""
ILL_CONDITIONED = 256.0
"""The condition of U_S or V_S up to which float32 loses at most 10⁻⁵ of an update by M_S V_S."""


class GatedFactors(GatedUpdate):
    """A matrix of which each member has the factors U_k diag(s_k) V_k; `rule` and `scale` merge sets of them.

    `down` [R, n] and `up` [R, m] are the factors of all members, one below the other, as rows: x is taken
    down to V x, multiplied by the core α M_S, and up again. `transposed` says that the weight is stored as
    [n, m], so that the left factors are those of the inputs.

    A set of members S is merged by `rule`; of members with weights it is the sum Σ_k w_k α Δ_k, whose core is
    diagonal, and which is differentiable in the weights.

    Examples:
        >>> import torch
        >>> from submerge.algebra import Triplets
        >>> from submerge.gating import Gate, GatedFactors, Group, Recent
        >>> parts = {0: Triplets(torch.tensor([[1.0], [2.0]]), torch.ones(1), torch.tensor([[3.0, 0.0]]))}
        >>> update = GatedFactors(Gate(Recent(0)), "up_proj", parts, rule="sum", scale=1.0)
        >>> update.dense(torch.ones(2, 2), Group((0,), 0, 5)).tolist()
        [[4.0, 1.0], [7.0, 1.0]]
    """

    down: torch.Tensor
    up: torch.Tensor
    values: torch.Tensor

    def __init__(
        self,
        gate: Gate,
        name: str,
        parts: Mapping[int, Triplets],
        *,
        rule: str,
        scale: float,
        transposed: bool = False,
        table: bool = False,
    ) -> None:
        super().__init__(gate, name)
        self.rule, self.scale, self.transposed = rule, scale, transposed
        self._ill_conditioned: set[tuple[int, ...]] = set()
        ordered = [parts[k] for k in sorted(parts)]
        self.shape = (ordered[0].left.shape[0], ordered[0].right.shape[1])
        self.places: dict[int, slice] = {}
        for member in sorted(parts):
            start = max((place.stop for place in self.places.values()), default=0)
            self.places[member] = slice(start, start + parts[member].rank)
        left = torch.cat([p.left for p in ordered], dim=1)
        right = torch.cat([p.right for p in ordered])
        rows = left.T if table else left.T.contiguous()  # of a table whole rows of U are looked up
        self.register_buffer("down", rows if transposed else right, persistent=False)
        self.register_buffer("up", right if transposed else rows, persistent=False)
        self.register_buffer("values", torch.cat([p.values for p in ordered]), persistent=False)

    @property
    def bank(self) -> Bank:
        """The factors by member, where they are now."""
        left, right = (self.down, self.up) if self.transposed else (self.up, self.down)
        parts = {k: Triplets(left[at].T, self.values[at], right[at]) for k, at in self.places.items()}
        return Bank(self.shape, parts, self.gate.cache, self.name)

    def core(self, group: Group, like: torch.Tensor) -> torch.Tensor:
        """Return α M_S: its diagonal [R] where it is one, else [R, R] that rows of V x are multiplied by."""
        if group.weights is not None:
            return self._weighted(group).to(like)
        members = group.members
        return self._recent(members, like, ("core",), lambda: (self._core(members),))[0]

    def _weighted(self, group: Group) -> torch.Tensor:
        """Return the diagonal α w_k s_k of a weighted sum."""
        places = [self.places[k] for k in group.members]
        values = torch.cat([self.values[at] for at in places])
        return values * group.unit_weights([at.stop - at.start for at in places]).to(values) * self.scale

    def _core(self, members: tuple[int, ...]) -> torch.Tensor:
        if Bank.is_diagonal(members, self.rule):
            return torch.cat([self.values[self.places[k]] for k in members]) * self.scale
        core = self.bank.core(members, self.rule)
        if core.condition > ILL_CONDITIONED:
            self._ill_conditioned.add(members)
        return (core.matrix if self.transposed else core.matrix.T) * self.scale

    def is_ill_conditioned(self, group: Group, like: torch.Tensor) -> bool:
        """Return whether directions of the members nearly coincide.

        Then M_S has large entries, which cancel in its product with V_S: that product has to be rounded.
        """
        self.core(group, like)
        return group.weights is None and group.members in self._ill_conditioned

    def sides(self, members: tuple[int, ...], like: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return C_S [R, n] and D_S [R, m], rows with α Δ_S = D_Sᵀ C_S, for members that nearly coincide."""
        return self._recent(members, like, ("down", "up"), lambda: self._sides(members))

    def _sides(self, members: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
        merged = self.bank.merged(members, self.rule, self.scale)
        assert isinstance(merged, LowRank)
        left, right = merged.left.T, merged.right
        return (left, right) if self.transposed else (right, left)

    def _recent(
        self,
        members: tuple[int, ...],
        like: torch.Tensor,
        names: Sequence[str],
        make: Callable[[], tuple[torch.Tensor, ...]],
    ) -> tuple[torch.Tensor, ...]:
        """Return what is made of a set of members in the dtype and on the device of a tensor, made once."""
        keys: list[Hashable] = [(self.name, name, members, like.dtype, like.device) for name in names]
        if not all(key in self.gate.cache for key in keys):
            tensors = tuple(one.to(like) for one in make())
            self.gate.cache.update(zip(keys, tensors, strict=True))
            return tensors
        return tuple(self.gate.cache[key] for key in keys)

    def rows_of(self, factors: torch.Tensor, members: Sequence[int]) -> torch.Tensor:
        """Return the rows of `down` or `up` of some members; a view where they are neighbours."""
        places = [self.places[k] for k in members]
        if all(a.stop == b.start for a, b in pairwise(places)):
            return factors[places[0].start : places[-1].stop]
        return torch.cat([factors[at] for at in places])

    def add_(self, y: torch.Tensor, x: torch.Tensor, group: Group) -> None:
        """Add x Δᵀ, for the rows x [N, n] of a group, to its rows y [N, m]."""
        group = group.among(self.places)
        if not group.members:
            return
        if self.is_ill_conditioned(group, x):
            down, up = self.sides(group.members, x)
            y.addmm_(x @ down.T, up)
            return
        low = x @ self.rows_of(self.down, group.members).T.to(x.dtype)  # [N, R]
        y.addmm_(self._times_core(low, group), self.rows_of(self.up, group.members).to(x.dtype))

    def _times_core(self, low: torch.Tensor, group: Group) -> torch.Tensor:
        if group.weights is not None:  # in 16 bits they would not see the steps of an optimiser
            return (low * self.core(group, self.values)).to(low.dtype)
        core = self.core(group, low)
        return low * core if core.ndim == 1 else low @ core

    def dense(self, parameter: torch.Tensor, group: Group) -> torch.Tensor:
        base, group = self.resident(parameter), group.among(self.places)
        if not group.members:
            return base
        wide = torch.promote_types(base.dtype, self.down.dtype)
        down, up = self._merged_sides(group, self.down.new_empty(0, dtype=wide))
        left, right = (down.T, up) if self.transposed else (up.T, down)
        return torch.addmm(base.to(wide), left, right).to(base.dtype)

    def apart(self, parameter: torch.Tensor, group: Group) -> tuple[torch.Tensor, GatedFactors | None]:
        if self.is_cheaper_dense(group):
            return self.dense(parameter, group), None
        return self.resident(parameter), self

    def _merged_sides(self, group: Group, like: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return factors [R, n] and [R, m] of the update of a group, with its core in the first."""
        if self.is_ill_conditioned(group, like):
            return self.sides(group.members, like)
        down, up = (self.rows_of(factors, group.members).to(like) for factors in (self.down, self.up))
        core = self.core(group, like)
        return (down * core.unsqueeze(1) if core.ndim == 1 else core.T @ down), up

    def inputs_first(self, weight: torch.Tensor) -> torch.Tensor:
        """Return a weight as [n, m], which rows of inputs are multiplied by."""
        return weight if self.transposed else weight.T

    def is_cheaper_dense(self, group: Group) -> bool:
        """Return whether a group has so many rows that its dense update is cheaper than the factors.

        One that gradients flow through would hold an m × n matrix for them, so that it never is.
        """
        m, n = self.shape
        rank: int = sum(self.places[k].stop - self.places[k].start for k in group.among(self.places).members)
        return not group.is_learned and group.size * rank * (m + n) > m * n * (rank + COPY)


class GatedTable(GatedFactors):
    """A table of which each member has factors; a set of members gets the mean of their updates.

    Members that do not change it count in the mean, too: they have no triplets.
    """

    def __init__(
        self, gate: Gate, name: str, parts: Mapping[int, Triplets], *, count: int, **more: Any
    ) -> None:
        first = next(iter(parts.values()))
        none = Triplets(first.left[:, :0], first.values[:0], first.right[:0])
        super().__init__(gate, name, {k: parts.get(k, none) for k in range(count)}, **more)

    def _core(self, members: tuple[int, ...]) -> torch.Tensor:
        """Return the diagonal α s / |S|."""
        return torch.cat([self.values[self.places[k]] for k in members]) * (self.scale / len(members))
