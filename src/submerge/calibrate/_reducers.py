"""What can be gathered of a module's inputs."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Sequence

import torch

from submerge.algebra import (
    BlockMoment,
    FactorMoment,
    Moment,
    ProductSum,
    TriangleMoment,
    add_products,
    tolerance,
)
from submerge.calibrate._collect import Reducer

__all__ = [
    "MOMENT_KINDS",
    "Mean",
    "MomentReducer",
    "NullSpaceRatio",
    "SecondMoment",
    "block_size",
    "row_space",
]

MOMENT_KINDS = ("full", "block", "diag", "identity")
"""What a `SecondMoment` may hold of the products of inputs."""
BLOCK = 256
"""Inputs in a block of a `block` moment, at most: 4 % of the numbers of a full one for 7168 inputs."""
FLOOR = 1e-12
"""The least ω² that is told from 0: the square root has no finite slope there."""


class NullSpaceRatio(Reducer):
    """The share of each input that K adapters' down-projections A_k do not see, as a mean over rows.

    For a row x of the module's inputs and A_k [r_k, n]

        ω_k(x) = ‖(I − A_k⁺ A_k) x‖ / ‖x‖ = √(1 − ‖Q_kᵀ x‖² / ‖x‖²),     A_kᵀ = Q_k R_k  (thin QR),

    in [0, 1]: 0 where x lies in the row space of A_k, 1 where it lies in the null space (arXiv 2603.26317,
    §3). Any scale of A_k cancels, so that alphas do not matter. One product with all Q_k side by side
    serves the K adapters: K r n multiply-adds a row. It is computed in float32, or float64 where the inputs
    are, outside of autocast: of inputs without any structure E ω² = 1 − r/n, so that all that the ratio says
    lies in a narrow band below 1. Gradients flow to the inputs; the A_k are constants.

    Rows of zeros have no ratio, and do not count; a row with NaN or Inf makes the mean NaN.

    Args:
        factors: A_k [r_k, n] of each adapter, of any ranks, which may be deficient; None for an adapter that
            does not change the module. An adapter whose A_k has the rank n has no null space, and no ratio.

    Raises:
        ValueError: no adapter has a ratio, or the A_k are not of one width.

    Examples:
        >>> import torch
        >>> from submerge.calibrate import NullSpaceRatio
        >>> ratio = NullSpaceRatio([torch.tensor([[2.0, 0, 0, 0]]), None])
        >>> ratio.update(torch.tensor([[3.0, 4, 0, 0], [0, 1, 0, 0]]))
        >>> [round(value, 4) for value in ratio.mean.tolist()]
        [0.9, nan]
    """

    def __init__(self, factors: Sequence[torch.Tensor | None]) -> None:
        bases = [None if a is None else row_space(a) for a in factors]
        defined = {k: q for k, q in enumerate(bases) if q is not None and q.shape[1] < q.shape[0]}
        if not defined:
            raise ValueError("no adapter has a null space here")
        if len({q.shape[0] for q in defined.values()}) > 1:
            raise ValueError("the factors are not of one width")
        self.defined = tuple(defined)
        self.ranks = tuple(q.shape[1] for q in defined.values())
        self.count = 0
        self._size = len(bases)
        self._basis = torch.cat(list(defined.values()), dim=1)  # [n, Σ r_k], float64
        self._converted = self._basis
        self._owner = torch.arange(len(defined)).repeat_interleave(torch.tensor(self.ranks))
        self._sums = torch.zeros(len(defined), dtype=torch.float64)

    @property
    def mean(self) -> torch.Tensor:
        """The mean ω_k over all rows so far [K], float64 on the CPU; NaN where there is none."""
        mean = self._sums.new_full((self._size,), math.nan)
        return mean.index_copy(0, torch.tensor(self.defined), self._sums / self.count) if self.count else mean

    @property
    def isotropic(self) -> torch.Tensor:
        """√(1 − r_k/n) [K], about the ratio of inputs without any structure; NaN where there is none."""
        level = self._sums.new_full((self._size,), math.nan)
        shares = torch.tensor(self.ranks, dtype=torch.float64) / len(self._basis)
        return level.index_copy(0, torch.tensor(self.defined), (1 - shares).sqrt())

    @property
    def is_finite(self) -> bool:
        """Whether no row had NaN or Inf so far."""
        return bool(self._sums.isfinite().all())

    def anew(self) -> NullSpaceRatio:
        """Return one of the same factors that has taken in no rows."""
        other = copy.copy(self)
        other.count, other._sums = 0, torch.zeros_like(self._sums, requires_grad=False)
        return other

    def update(self, rows: torch.Tensor) -> None:
        with torch.autocast(rows.device.type, enabled=False):
            x = rows if rows.dtype == torch.float64 else rows.float()
            totals = x.square().sum(-1)
            if not (nonzero := totals != 0).all():  # NaN is none, and makes the mean NaN
                x, totals = x[nonzero], totals[nonzero]
            squares = (x @ self._basis_like(x)).square()  # [N, Σ r_k]
            seen = x.new_zeros(len(x), len(self.defined)).index_add(1, self._owner.to(x.device), squares)
            seen = seen / totals.unsqueeze(1)
            ratios = (1 - seen).clamp(FLOOR, 1).sqrt()  # [N, K]
        self._sums = self._sums + ratios.sum(0).cpu().double()
        self.count += len(x)

    def _basis_like(self, x: torch.Tensor) -> torch.Tensor:
        """Return the Q_k side by side in the dtype and on the device of the inputs, converted once."""
        if (self._converted.dtype, self._converted.device) != (x.dtype, x.device):
            self._converted = self._basis.to(x)
        return self._converted


class MomentReducer(Reducer):
    """A reducer whose sum is a second moment."""

    @property
    @abstractmethod
    def moment(self) -> Moment:
        """The moment of all rows so far; it does not change with those to come."""


class SecondMoment(MomentReducer):
    """The second moment C = Σ xᵀ x of all rows x [n], and how many there are.

    The products are formed and summed in `dtype`, whatever the model's is: those of bfloat16 inputs are exact
    in float64, and in float32 but for the rounding of their sum. With float64 any division of the rows into
    batches gives the same to about 1e-15 of the trace. The sums are on the device of the inputs, and no
    gradients flow to them.

    Args:
        width: n.
        kind: `full`, `block`, `diag` or `identity`, as of `Moment`.
        block: inputs in a block: the largest number up to it that divides n.
        dtype: of the sums. float32 takes half of the memory. Of a full moment the lower triangle is held.

    Raises:
        ValueError: the kind is none of these.

    Examples:
        >>> import torch
        >>> from submerge.calibrate import SecondMoment
        >>> reducer = SecondMoment(2)
        >>> reducer.update(torch.tensor([[1.0, 2.0], [3.0, 0.0]], dtype=torch.bfloat16))
        >>> reducer.moment.count, reducer.moment.times(torch.eye(2))
        (2, tensor([[10.,  2.],
                [ 2.,  4.]], dtype=torch.float64))
    """

    def __init__(
        self, width: int, kind: str = "full", *, block: int = BLOCK, dtype: torch.dtype = torch.float64
    ) -> None:
        if kind not in MOMENT_KINDS:
            raise ValueError(f"a second moment is {', '.join(MOMENT_KINDS)}, not {kind}")
        self.count = 0
        self._width = width
        self._sums: torch.Tensor | None = None  # [n / b, b, b]
        self._products = ProductSum(width, dtype) if kind == "full" else None
        if kind in ("block", "diag"):
            b = 1 if kind == "diag" else block_size(width, block)
            self._sums = torch.zeros(width // b, b, b, dtype=dtype)

    @property
    def moment(self) -> Moment:
        if self._products is not None:
            return TriangleMoment(self._products.triangle, self.count)
        if self._sums is None:
            return FactorMoment.identity(self._width, self.count)
        return BlockMoment(self._sums.clone(), self.count)

    @torch.no_grad()
    def update(self, rows: torch.Tensor) -> None:
        self.count += len(rows)
        if self._products is not None:
            self._products.add(rows)
        elif self._sums is not None:
            self._sums = self._sums.to(rows.device)
            add_products(self._sums, rows)


def block_size(width: int, most: int = BLOCK) -> int:
    """Return how many inputs of n a block of a `block` moment has: the largest divisor of n up to `most`.

    Examples:
        >>> from submerge.calibrate import block_size
        >>> block_size(4096), block_size(11008), block_size(64)
        (256, 256, 64)
    """
    return next(b for b in range(min(most, width), 0, -1) if width % b == 0)


class Mean(Reducer):
    """The mean of all rows x [n], summed in float64, and how many there are.

    Sums and counts of two parts of the data add, so that the mean of all is that of the parts.

    Examples:
        >>> import torch
        >>> from submerge.calibrate import Mean
        >>> reducer = Mean(2)
        >>> reducer.update(torch.tensor([[1.0, 2.0], [3.0, 0.0]]))
        >>> reducer.mean
        tensor([2., 1.], dtype=torch.float64)
    """

    def __init__(self, width: int) -> None:
        self.count = 0
        self.sum = torch.zeros(width, dtype=torch.float64)

    @property
    def mean(self) -> torch.Tensor:
        """The mean so far [n], float64; NaN where there are no rows."""
        return self.sum / self.count

    @torch.no_grad()
    def update(self, rows: torch.Tensor) -> None:
        self.count += len(rows)
        self.sum += rows.double().sum(0).cpu()


def row_space(a: torch.Tensor) -> torch.Tensor:
    """Return an orthonormal basis [n, rank] of the rows of A [r, n], by QR in float64.

    The singular values of R tell the rank: those that are the rounding of A's own dtype do not count.
    """
    q, r = torch.linalg.qr(a.detach().cpu().double().T)  # [n, min(n, r)]
    u, s, _ = torch.linalg.svd(r, full_matrices=False)
    least = tolerance((a.shape[0], a.shape[1]), a.dtype) * s.max() if len(s) else 0.0
    basis: torch.Tensor = q @ u[:, s > least]
    return basis
