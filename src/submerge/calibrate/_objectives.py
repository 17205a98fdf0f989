"""What learned coefficients minimise: one number for a batch of task k in the merged model.

All objectives look at the inputs x of the hooked modules that adapter k changes, need no labels and no
outputs, and are means over these modules:

    null_space   mean over positions of ω_k(x) = ‖P_N x‖ / ‖x‖         (NSC, arXiv 2603.26317, §3)
    energy       Σ ‖P_N x‖² / Σ ‖x‖²                                   its second moments
    match        Σ ‖x − x_k‖² / Σ ‖x_k‖²,  x_k in the base with adapter k alone (λ_k = 1)

where P_N = I − A_k⁺ A_k and sums go over the batch's positions without padding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch

from submerge.calibrate._attached import AttachedAdapters
from submerge.calibrate._collect import ModelInputs, Reducer, collect
from submerge.calibrate._reducers import NullSpaceRatio, row_space
from submerge.calibrate._reuse import ReusedOutputs
from submerge.gating import ConstantScales

__all__ = ["OBJECTIVES", "Factors", "Objective"]

Factors = Mapping[str, torch.Tensor]
"""A_k [r_k, n] of one adapter by hooked module."""
HELD = 1 << 29
"""Bytes of single models' activations that are held for batches that come again."""


class Term(Reducer):
    """What one hooked module adds to the objective of a batch."""

    @property
    @abstractmethod
    def is_empty(self) -> bool:
        """Whether no row has come that counts, so that there is no number."""

    @property
    @abstractmethod
    def value(self) -> torch.Tensor:
        """The number, a function of the rows so far."""


class Objective(ABC):
    """The objective of each of K tasks; `hooked` are the A_k of each at the modules that it looks at."""

    guarded = True
    """Whether it draws the coefficient of an adapter whose ω rises with λ towards 0."""

    def __init__(self, adapters: AttachedAdapters, hooked: tuple[Factors, ...]) -> None:
        self.adapters, self.hooked = adapters, hooked
        self._reused = ReusedOutputs(adapters.model, {path for own in hooked for path in own})

    def __call__(self, k: int, batch: ModelInputs, scales: ConstantScales) -> torch.Tensor:
        """Return the objective of a batch of task k in the model with scales [K] by module."""
        terms = self.terms(k, batch)
        with self.adapters.over(scales), self._reused.over(batch):
            collect(self.adapters.model, [batch], terms)
        values = [term.value for term in terms.values() if not term.is_empty]
        return torch.stack(values).mean() if values else torch.tensor(torch.nan)

    @abstractmethod
    def terms(self, k: int, batch: ModelInputs) -> dict[str, Term]:
        """Return new terms for a batch of task k, by module."""


class _Ratio(Term):
    def __init__(self, ratio: NullSpaceRatio) -> None:
        self._ratio = ratio

    def update(self, rows: torch.Tensor) -> None:
        self._ratio.update(rows)

    @property
    def is_empty(self) -> bool:
        return not self._ratio.count

    @property
    def value(self) -> torch.Tensor:
        return self._ratio.mean[0]


class _NullSpace(Objective):
    def __init__(self, adapters: AttachedAdapters, hooked: tuple[Factors, ...]) -> None:
        super().__init__(adapters, hooked)
        self._ratios = [{path: NullSpaceRatio([a]) for path, a in own.items()} for own in hooked]

    def terms(self, k: int, batch: ModelInputs) -> dict[str, Term]:
        return {path: _Ratio(ratio.anew()) for path, ratio in self._ratios[k].items()}


class _Quotient(Term):
    """A quotient of two sums of squares over all rows, in float32, or float64 where the rows are."""

    def __init__(self) -> None:
        self._above = self._below = torch.zeros((), dtype=torch.float64)

    def update(self, rows: torch.Tensor) -> None:
        with torch.autocast(rows.device.type, enabled=False):
            x = rows if rows.dtype == torch.float64 else rows.float()
            above, below = self.squares(x)
        self._above = self._above + above.cpu().double()
        self._below = self._below + below.cpu().double()

    @abstractmethod
    def squares(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what rows [N, n] add to either sum."""

    @property
    def is_empty(self) -> bool:
        return bool(self._below == 0)

    @property
    def value(self) -> torch.Tensor:
        return self._above / self._below


class _EnergyShare(_Quotient):
    def __init__(self, basis: torch.Tensor) -> None:
        super().__init__()
        self._basis = basis  # [n, r], orthonormal

    def squares(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        total = x.square().sum()
        return total - (x @ self._basis.to(x)).square().sum(), total


class _Energy(Objective):
    def __init__(self, adapters: AttachedAdapters, hooked: tuple[Factors, ...]) -> None:
        super().__init__(adapters, hooked)
        self._bases = [{path: row_space(a) for path, a in own.items()} for own in hooked]

    def terms(self, k: int, batch: ModelInputs) -> dict[str, Term]:
        return {path: _EnergyShare(basis) for path, basis in self._bases[k].items()}


class _HeldRows(Reducer):
    """The rows themselves."""

    def __init__(self) -> None:
        self.rows = torch.empty(0)

    def update(self, rows: torch.Tensor) -> None:
        self.rows = rows


class _RelativeError(_Quotient):
    def __init__(self, wanted: torch.Tensor) -> None:
        super().__init__()
        self._wanted = wanted  # [N, n]

    def squares(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        wanted = self._wanted.to(x)
        return (x - wanted).square().sum(), wanted.square().sum()


class _Match(Objective):
    guarded = False

    def __init__(self, adapters: AttachedAdapters, hooked: tuple[Factors, ...]) -> None:
        super().__init__(adapters, hooked)
        self._held: dict[tuple[int, int], tuple[ModelInputs, dict[str, torch.Tensor]]] = {}
        self._room = HELD

    def terms(self, k: int, batch: ModelInputs) -> dict[str, Term]:
        return {path: _RelativeError(rows) for path, rows in self._single(k, batch).items()}

    def _single(self, k: int, batch: ModelInputs) -> dict[str, torch.Tensor]:
        """Return the inputs of the hooked modules in the base with adapter k alone, held if there is room."""
        key = k, id(batch)
        if key in self._held:
            return self._held[key][1]
        rows = self._single_anew(k, batch)
        size = sum(value.nbytes for value in rows.values())
        if size <= self._room:
            self._held[key] = batch, rows  # with the batch, whose id another one would get
            self._room -= size
        return rows

    @torch.no_grad()
    def _single_anew(self, k: int, batch: ModelInputs) -> dict[str, torch.Tensor]:
        reducers = {path: _HeldRows() for path in self.hooked[k]}
        with self.adapters.over(torch.eye(len(self.adapters.names), dtype=torch.float64)[k]):
            collect(self.adapters.model, [batch], reducers)
        return {path: reducer.rows for path, reducer in reducers.items()}


OBJECTIVES: dict[str, type[Objective]] = {"null_space": _NullSpace, "energy": _Energy, "match": _Match}
