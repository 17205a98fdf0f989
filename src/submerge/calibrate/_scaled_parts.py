"""What adapters do to a model's parameters, as updates that scales act on.

factors of a linear map or an embedding    Δ_k = s_k B_k A_k
factors of a kernel, or of packed experts  Δ_k = s_k B_k A_k, for each expert
new values Θ_k (`modules_to_save`)         Δ_k = Θ_k − W
new values of some rows i of a table       Δ_k = Σ_i e_i (Θ_k − W)_i, of as many rank-one units
a bias of B (`lora_bias`)                  Δ_k = s_k b_k
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional as F

from submerge.algebra import Triplets
from submerge.errors import Problem, RequestError
from submerge.gating import (
    Gate,
    GatedDense,
    GatedFactors,
    GatedProducts,
    GatedSum,
    GatedUpdate,
    is_transposed,
    parameter_of,
    reader_of,
)
from submerge.store import Adapter, FileTable, LowRankPart, Replace, Rows, is_relative

__all__ = ["ScaledParameter", "runner_of", "scaled_parameters", "unscaled_parameters"]


@dataclass
class ScaledParameter:
    """One parameter of a model, and the updates of the adapters that change it, by their numbers.

    `low_rank` are those that have an A_k, which `gated` puts into `down` [r_k, n].
    """

    path: str
    name: str
    factors: dict[int, Triplets] = field(default_factory=dict)
    products: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    dense: dict[int, torch.Tensor] = field(default_factory=dict)
    low_rank: list[int] = field(default_factory=list)
    down: dict[int, torch.Tensor] = field(default_factory=dict)

    @property
    def units(self) -> dict[int, int]:
        """How many scales each adapter's update takes: one a rank-one unit of a linear map, or 1.

        Those of tables and of new values are merged as they are, without their factors.
        """
        every = dict.fromkeys((*self.factors, *self.products, *self.dense), 1)
        return every | {k: self.factors[k].rank for k in self.low_rank}

    def add(self, k: int, adapter: Adapter, value: torch.Tensor, table: FileTable, *, is_map: bool) -> None:
        """Add what an adapter does to the parameter, which has this value, and is that of a map or not."""
        name = f"{self.path}.{self.name}"
        part = adapter.parts[name]
        old = value.detach().to(torch.promote_types(torch.float32, value.dtype))
        double = old.dtype == torch.float64
        if isinstance(part, LowRankPart):
            left, right = (factor.to(old) for factor in adapter.factors(name, table, double=double))
            _check_finite(adapter, name, left, right)
            if not is_map:
                self.products[k] = left, right
                return
            self.factors[k] = Triplets(left, left.new_ones(left.shape[1]), right)
            if part.kind != "embedding":
                self.low_rank.append(k)
            return
        new = adapter.tensor(name, table, double=double).to(old)
        if isinstance(part, Replace):
            new = _with_rows_of(new, old)
        _check_finite(adapter, name, new)
        if isinstance(part, Rows):
            rows = torch.tensor(part.indices, device=old.device)
            left = F.one_hot(rows, len(old)).T.to(old)
            self.factors[k] = Triplets(left, left.new_ones(len(rows)), new - old[rows])
        else:
            self.dense[k] = new - old if isinstance(part, Replace) else new.view_as(old)

    def gated(self, gate: Gate, module: nn.Module) -> GatedUpdate:
        """Return the parameter's update for the gate of its module."""
        key = f"{self.path}.{self.name}"
        terms: list[GatedUpdate] = []
        if self.factors:
            factors = GatedFactors(
                gate,
                key,
                self.factors,
                rule="sum",
                scale=1.0,
                transposed=is_transposed(module),
                table=isinstance(module, nn.Embedding),
            )
            self.down = {k: factors.down[factors.places[k]] for k in self.low_rank}
            terms.append(factors)
        if self.products:
            terms.append(GatedProducts(gate, key, self.products))
        if self.dense:
            terms.append(GatedDense(gate, key, self.dense))
        return terms[0] if len(terms) == 1 else GatedSum(gate, key, terms)


def _with_rows_of(new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """Return the new values of the rows that a table has, and its own where there are none."""
    if len(new) == len(old):
        return new
    return torch.cat([new[: len(old)], old[len(new) :]])


def _check_finite(adapter: Adapter, name: str, *values: torch.Tensor) -> None:
    """Raise `RequestError` where an adapter has NaN or Inf, as all that a model makes would have."""
    if not all(bool(value.isfinite().all()) for value in values):
        what = f"what it does to {name} has NaN or Inf"
        raise RequestError(Problem(what, str(adapter.path), "train it again, or leave it out"))


def scaled_parameters(model: nn.Module, adapters: Sequence[Adapter]) -> list[ScaledParameter]:
    """Return the parameters that scales of adapters act on; these are fitted to the model.

    Updates are in float32, or the parameter's dtype where that is wider, and on its device. Raises
    `RequestError` where one has NaN or Inf.
    """
    scaled: dict[str, ScaledParameter] = {}
    with FileTable() as table:
        for k, adapter in enumerate(adapters):
            for name in (n for n in adapter.parts if _why_unscaled(model, adapter, n) is None):
                path, _, local = name.rpartition(".")
                parameter = scaled.setdefault(name, ScaledParameter(path, local))
                is_map = _is_map(model, name)
                parameter.add(k, adapter, parameter_of(model, name), table, is_map=is_map)
    return list(scaled.values())


def unscaled_parameters(model: nn.Module, adapter: Adapter) -> Iterator[tuple[str, str]]:
    """Yield the parameters that an adapter changes in a way that scales do not act on, and why."""
    for name in adapter.parts:
        if (why := _why_unscaled(model, adapter, name)) is not None:
            yield name, why


def runner_of(model: nn.Module, name: str) -> str:
    """Return the module whose forward reads a parameter: its own, or one around it (`reader_of`)."""
    path, _, local = name.rpartition(".")
    reader = reader_of(model, path, local)
    return path if reader is None else reader


def _why_unscaled(model: nn.Module, adapter: Adapter, name: str) -> str | None:
    part = adapter.parts[name]
    if not parameter_of(model, name).is_floating_point():
        return "it holds no floating-point numbers"
    return None if is_relative(part) or isinstance(part, Replace | Rows) else adapter.dense_only(name)


def _is_map(model: nn.Module, name: str) -> bool:
    """Return whether a parameter is the weight of a linear map or of an embedding."""
    path, _, local = name.rpartition(".")
    module = model.get_submodule(path)
    return local == "weight" and (isinstance(module, (nn.Linear, nn.Embedding)) or is_transposed(module))
