"""The gated layers: y = W x + U_S M_S V_S x, where the set S of updates differs from sample to sample.

A gated layer is the layer itself, with its forward replaced. Samples lie sorted, so that those with one S are
a slice. For a slice of N tokens a linear map [m, n] with R = Σ_{t∈S} r_t has two exact forms:

    W x + U (M (V x))      2 N R (m + n) operations beside those of W x
    (W + U M V) x          2 m n R operations and a new m × n matrix, once for the slice

so that the second is taken where N R (m + n) > m n (R + c); to copy an element takes as long as c products.
There is one W for all slices, and no copy of the model. V_t x is computed for the tasks of the slice alone:
with one task a sample, V x of all tasks for all samples would cost as much as W x itself.

W is the base's, θ_0, which the folder does not hold: its checkpoint is the merge θ_MT = θ_0 + Δ_MT. The
difference is made of the same factors, so that θ_0 = θ_MT − U M_all V is found once, when a model is loaded,
by the function that made θ_MT: exact to float32's rounding (in a 16-bit checkpoint, to that of θ_MT itself).
To add U_S M_S V_S − U M_all V at each pass instead would need the factors of all T tasks, which cost as much
as W x or twice that. θ_MT stays beside θ_0 only where the first pass needs it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from submerge.algebra import Bank, LowRank, Triplets
from submerge.gating._batch import cut, joined, tensors
from submerge.gating._gate import Gate, UnsplitError

__all__ = ["Factors", "Forward", "GatedLayer", "Kept", "Table", "Whole", "gate_layer"]

WRITTEN = 32
"""Multiply-adds of a matrix product in the time that it takes to copy an element."""
NEAR = 256.0
"""The condition of U_S or V_S up to which float32 loses at most 10⁻⁵ of an update by M_S V_S."""


class Kept(nn.Module, ABC):
    """One gated parameter: the base's values, and what tasks add to them."""

    origin: torch.Tensor | None

    def __init__(self, gate: Gate, name: str) -> None:
        super().__init__()
        self.gate = gate
        self.name = name
        self.register_buffer("origin", None, persistent=False)

    @abstractmethod
    def dense(self, parameter: torch.Tensor, tasks: Sequence[int]) -> torch.Tensor:
        """Return the base's values plus the update of the tasks."""

    def based(self, parameter: torch.Tensor) -> torch.Tensor:
        """Return the base's values; where the checkpoint's are needed beside them, they are `origin`."""
        return parameter if self.origin is None else self.origin


class Whole(Kept):
    """A parameter of which each task keeps its whole update; a set of tasks gets their mean."""

    updates: torch.Tensor

    def __init__(self, gate: Gate, name: str, updates: Mapping[int, torch.Tensor]) -> None:
        super().__init__(gate, name)
        self.tasks = {task: place for place, task in enumerate(sorted(updates))}
        self.register_buffer("updates", torch.stack([updates[t] for t in sorted(updates)]), persistent=False)

    def update(self, tasks: Sequence[int]) -> torch.Tensor | None:
        """Return what the tasks add; None where that is nothing."""
        places = [self.tasks[t] for t in tasks if t in self.tasks]
        return self.updates[places].sum(0) / len(tasks) if places else None

    def dense(self, parameter: torch.Tensor, tasks: Sequence[int]) -> torch.Tensor:
        key: Hashable = (self.name, "dense", tuple(tasks), parameter.dtype, parameter.device)
        if key not in self.gate.cache:
            base, update = self.based(parameter), self.update(tasks)
            made = base if update is None else (base + update.to(base.dtype))
            self.gate.cache[key] = made
            return made
        return self.gate.cache[key]


class Factors(Kept):
    """A matrix of which each task keeps the leading triplets; `rule` and `scale` say how sets are merged.

    `down` [R, n] and `up` [R, m] are the factors of all tasks, one below the other, as rows: x is taken down
    to V x, turned by the core, and up again. `turned` says that the weight is stored as [n, m], so that the
    left factors are those of the inputs.
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
        turned: bool = False,
        table: bool = False,
    ) -> None:
        super().__init__(gate, name)
        self.rule, self.scale, self.turned = rule, scale, turned
        self._near: set[tuple[int, ...]] = set()
        some = next(iter(parts.values()))
        self.shape = (some.left.shape[0], some.right.shape[1])
        self.places: dict[int, slice] = {}
        at = 0
        for task in sorted(parts):
            self.places[task] = slice(at, at + parts[task].rank)
            at += parts[task].rank
        ordered = [parts[task] for task in sorted(parts)]
        left = torch.cat([p.left for p in ordered], dim=1)
        right = torch.cat([p.right for p in ordered])
        rows = left.T if table else left.T.contiguous()  # of a table whole rows of U are looked up
        self.register_buffer("down", rows if turned else right, persistent=False)
        self.register_buffer("up", right if turned else rows, persistent=False)
        self.register_buffer("values", torch.cat([p.values for p in ordered]), persistent=False)

    @property
    def bank(self) -> Bank:
        """The factors by task, where they are now."""
        left, right = (self.down, self.up) if self.turned else (self.up, self.down)
        parts = {task: Triplets(left[at].T, self.values[at], right[at]) for task, at in self.places.items()}
        return Bank(self.shape, parts, self.gate.cache, self.name)

    def members(self, tasks: Sequence[int]) -> tuple[int, ...]:
        """Return those of the tasks that change this weight."""
        return tuple(t for t in tasks if t in self.places)

    def core(self, members: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        """Return α M_S: its diagonal [R] where it is one, else [R, R] that rows of V x are multiplied by."""
        return self._recent(members, like, ("turn",), lambda: (self._core(members),))[0]

    def _core(self, members: tuple[int, ...]) -> torch.Tensor:
        if Bank.is_diagonal(members, self.rule):
            return torch.cat([self.values[self.places[t]] for t in members]) * self.scale
        found = self.bank.core(members, self.rule)
        if found.condition > NEAR:
            self._near.add(members)
        return (found.matrix if self.turned else found.matrix.T) * self.scale

    def near(self, members: tuple[int, ...], like: torch.Tensor) -> bool:
        """Return whether directions of the tasks nearly coincide.

        Then M_S has large entries, which cancel in its product with V_S: that product has to be rounded.
        """
        self.core(members, like)
        return members in self._near

    def sides(self, members: tuple[int, ...], like: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return C_S [R, n] and D_S [R, m], rows with α Δ_S = D_Sᵀ C_S, for tasks that are near."""
        return self._recent(members, like, ("down", "up"), lambda: self._sides(members))

    def _sides(self, members: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
        merged = self.bank.merged(members, self.rule, self.scale)
        assert isinstance(merged, LowRank)
        left, right = merged.left.T, merged.right
        return (left, right) if self.turned else (right, left)

    def _recent(
        self,
        members: tuple[int, ...],
        like: torch.Tensor,
        names: Sequence[str],
        make: Callable[[], tuple[torch.Tensor, ...]],
    ) -> tuple[torch.Tensor, ...]:
        """Return what is made of a set of tasks in the dtype and on the device of a tensor, made once."""
        keys: list[Hashable] = [(self.name, name, members, like.dtype, like.device) for name in names]
        if not all(key in self.gate.cache for key in keys):
            made = tuple(one.to(like) for one in make())
            self.gate.cache.update(zip(keys, made, strict=True))
            return made
        return tuple(self.gate.cache[key] for key in keys)

    def rows(self, which: torch.Tensor, members: Sequence[int]) -> torch.Tensor:
        """Return the rows of `down` or `up` of some tasks; a view where they are neighbours."""
        places = [self.places[t] for t in members]
        if all(a.stop == b.start for a, b in pairwise(places)):
            return which[places[0].start : places[-1].stop]
        return torch.cat([which[at] for at in places])

    def applied(self, x: torch.Tensor, members: tuple[int, ...], into: torch.Tensor) -> None:
        """Add x Δ_Sᵀ, for x [N, n], to `into` [N, m]."""
        if self.near(members, x):
            down, up = self.sides(members, x)
            into.addmm_(x @ down.T, up)
            return
        low = x @ self.rows(self.down, members).T.to(x.dtype)
        core = self.core(members, low)
        low = low * core if core.ndim == 1 else low @ core
        into.addmm_(low, self.rows(self.up, members).to(x.dtype))

    def dense(self, parameter: torch.Tensor, tasks: Sequence[int]) -> torch.Tensor:
        base, members = self.based(parameter), self.members(tasks)
        if not members:
            return base
        wide = torch.promote_types(base.dtype, self.down.dtype)
        like = self.down.new_empty(0, dtype=wide)
        if self.near(members, like):
            down, up = self.sides(members, like)
        else:
            down, up = self.rows(self.down, members).to(wide), self.rows(self.up, members).to(wide)
            core = self.core(members, like)
            down = down * core.unsqueeze(1) if core.ndim == 1 else core.T @ down
        left, right = (down.T, up) if self.turned else (up.T, down)
        return torch.addmm(base.to(wide), left, right).to(base.dtype)

    def right(self, weight: torch.Tensor) -> torch.Tensor:
        """Return a weight as [n, m], which rows of inputs are multiplied by."""
        return weight if self.turned else weight.T

    def cheaper_whole(self, tasks: Sequence[int], tokens: int) -> bool:
        """Return whether so many tokens make the dense update of the tasks cheaper than the factors."""
        m, n = self.shape
        rank: int = sum(self.places[t].stop - self.places[t].start for t in self.members(tasks))
        return tokens * rank * (m + n) > m * n * (rank + WRITTEN)


class Table(Factors):
    """A table of which each task keeps the leading triplets; a set of tasks gets the mean of its updates.

    Tasks that do not change it count in the mean, too: they have no triplets.
    """

    def __init__(
        self, gate: Gate, name: str, parts: Mapping[int, Triplets], *, tasks: int, **more: Any
    ) -> None:
        some = next(iter(parts.values()))
        none = Triplets(some.left[:, :0], some.values[:0], some.right[:0])
        super().__init__(gate, name, {t: parts.get(t, none) for t in range(tasks)}, **more)

    def core(self, members: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        """Return the diagonal α s / |S|."""
        found = torch.cat([self.values[self.places[t]] for t in members])
        return (found * (self.scale / len(members))).to(like)


Parameters = Mapping[str, Kept]


class GatedLayer(nn.Module):
    """The gate of one module: its own parameters that are gated, and how the module is run with them."""

    def __init__(self, gate: Gate, module: nn.Module, kept: Mapping[str, Kept], name: str) -> None:
        super().__init__()
        self.gate = gate
        self.name = name
        self.kept = nn.ModuleDict(kept)
        self._plain = type(module).forward
        self._entered = False
        self._run: Callable[..., Any] = _runner(module, kept)
        self.routes = self._run is GatedLayer.linear

    def forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Return what the module makes of its inputs, each sample with its own updates."""
        if self.gate.probe is not None and args and not self._entered:
            self.gate.probe.see(self, args[0])
        if self._entered or not self.gate.gates(self.name):
            return self._plain(module, *args, **kwargs)
        return self._run(self, module, *args, **kwargs)

    def values(self, module: nn.Module, tasks: Sequence[int]) -> dict[str, torch.Tensor]:
        """Return the module's gated parameters with the update of the tasks."""
        return {name: self.value(module, name, tasks) for name in self.kept}

    def value(self, module: nn.Module, name: str, tasks: Sequence[int]) -> torch.Tensor:
        """Return one of the module's parameters, with the update of the tasks where it is gated."""
        parameter: torch.Tensor = getattr(module, name)
        if name not in self.kept:
            return parameter
        kept = self.kept[name]
        assert isinstance(kept, Kept)
        return kept.dense(parameter, tasks)

    def linear(self, module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """Run a linear map; what is cheaper as factors shares one product with the base's weight."""
        gate, weight = self.gate, self.kept["weight"]
        assert isinstance(weight, Factors)
        x = gate.spread(x)
        base: torch.Tensor = weight.based(module.weight)  # type: ignore[arg-type]
        flat = x.reshape(-1, x.shape[-1])
        each = flat.shape[0] // x.shape[0] if x.shape[0] else 0
        spans = [(s, slice(at.start * each, at.stop * each)) for s, at in gate.slices(x)]
        whole = [weight.cheaper_whole(span.tasks, at.stop - at.start) for span, at in spans]
        few = whole.index(False) if False in whole else len(spans)  # the first spans are the largest
        y = flat.new_empty(flat.shape[0], weight.up.shape[1])
        biased = getattr(module, "bias", None) is not None
        for span, at in spans if biased else ():
            y[at] = self.value(module, "bias", span.tasks)
        for span, at in spans[:few]:
            y[at].addmm_(flat[at], weight.right(weight.dense(base, span.tasks)), beta=biased)
        if few < len(spans):
            first = spans[few][1].start
            y[first:].addmm_(flat[first:], weight.right(base), beta=biased)
        for span, at in spans[few:]:
            if members := weight.members(span.tasks):
                weight.applied(flat[at], members, y[at])
        return y.view(*x.shape[:-1], y.shape[-1])

    def embedding(self, module: nn.Embedding, ids: torch.Tensor) -> torch.Tensor:
        """Look rows up, E[i] + U_S[i] M_S V_S."""
        weight = self.kept["weight"]
        assert isinstance(weight, Factors)
        ids = self.gate.spread(ids)
        y = F.embedding(ids, weight.based(module.weight))
        left = weight.up.T
        for span, at in self.gate.slices(ids):
            members = weight.members(span.tasks)
            if members and weight.near(members, y):
                y[at] = F.embedding(ids[at], weight.dense(module.weight, members))
            elif members:
                places = [weight.places[t] for t in members]
                low = torch.cat([F.embedding(ids[at], left[:, p]) for p in places], dim=-1).to(y.dtype)
                core = weight.core(members, low)
                low = low * core if core.ndim == 1 else low @ core.T
                y[at] += low @ weight.rows(weight.down, members).to(y.dtype)
        return y

    def norm(self, module: nn.LayerNorm, x: torch.Tensor) -> torch.Tensor:
        """Normalise, and scale and shift each sample by its own tasks' parameters."""
        x = self.gate.spread(x)
        y = torch.empty_like(x)
        for span, at in self.gate.slices(x):
            weight, bias = (self.value(module, name, span.tasks) for name in ("weight", "bias"))
            y[at] = F.layer_norm(x[at], module.normalized_shape, weight, bias, module.eps)
        return y

    def other(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Run any module span by span, with the parameters of each."""
        results = []
        self._entered = True
        try:
            if len(self.gate.spans) == 1:
                return functional_call(module, self.values(module, self.gate.spans[0].tasks), args, kwargs)
            rows = self._rows((args, kwargs))
            each = rows // self.gate.size
            for span in self.gate.spans:
                at = slice(span.start * each, span.stop * each)
                some, more = cut((args, kwargs), at, rows)
                with self.gate.within(span):
                    results.append(functional_call(module, self.values(module, span.tasks), some, more))
        finally:
            self._entered = False
        return joined(results)

    def _rows(self, inputs: Any) -> int:
        """Return the rows that the inputs have: one or several for each sample."""
        sizes = {x.shape[0] for x in tensors(inputs) if x.ndim}
        fitting = [n for n in sizes if n % self.gate.size == 0]
        if not fitting:
            raise UnsplitError
        return max(fitting)


def _runner(module: nn.Module, kept: Mapping[str, Any]) -> Callable[..., Any]:
    """Return how a module is run: by a form that is made for its kind, or span by span."""
    factors = isinstance(kept.get("weight"), Factors)
    plain = type(module).forward
    if factors and set(kept) <= {"weight", "bias"}:
        if plain is nn.Linear.forward or type(module).__name__ == "Conv1D":
            return GatedLayer.linear
        if plain is nn.Embedding.forward and module.max_norm is None:
            return GatedLayer.embedding
    if plain is nn.LayerNorm.forward:
        return GatedLayer.norm
    return GatedLayer.other


def gate_layer(gate: Gate, module: nn.Module, kept: Mapping[str, Kept], name: str) -> GatedLayer:
    """Gate a module in place, and return its gate; its class, parameters and state dict stay as they are."""
    layer = GatedLayer(gate, module, kept, name)
    module.add_module("submerge", layer)
    module.forward = Forward(module, layer)
    return layer


class Forward:
    """The forward of a gated module; an object, so that copies of the model are whole."""

    def __init__(self, module: nn.Module, layer: nn.Module) -> None:
        self.module, self.layer = module, layer

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.layer.forward(self.module, *args, **kwargs)
