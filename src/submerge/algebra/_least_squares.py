"""The merge that answers each task's inputs as its own update does, as well as one matrix can.

LPM (arXiv 2604.14016, §4.3) and RegMean (arXiv 2212.09849) minimise, for each linear map by itself,

    J(Ŵ) = Σ_t ‖(Ŵ − Δ_t) X_tᵀ‖²,

whose minimum is

    Ŵ = (Σ_t Δ_t C_t) Φ⁻¹,     C_t = X_tᵀ X_t,     Φ = Σ_t C_t.

The matrices C_t Φ⁻¹ sum to the identity: Ŵ is a mean of the updates, with a weight for each direction of the
inputs. Of low-rank updates Δ_t = B_t A_t it is low-rank,

    Ŵ = [B_1 … B_T] [A_1 C_1; …; A_T C_T] Φ⁻¹,     of rank Σ r_t,

so that no [m, n] matrix is formed.

Biases, embeddings and the gains of norms are linear in what they see, too: `merge_layer` merges them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from submerge.algebra._moment import Moment
from submerge.algebra._update import Dense, LowRank, Streamed, Update, Zero, weighted_sum
from submerge.deferred import torch

__all__ = ["LPM_PRESETS", "LpmOptions", "dtype_of", "entering", "merge_least_squares"]

ROWS = 512
"""Rows of a dense update that are multiplied and solved at a time: no second matrix is held in float64."""


@dataclass(frozen=True)
class LpmOptions:
    """How the moments of tasks are prepared, and what becomes of their least-squares merge.

    Attributes:
        ridge: ε of each task's ridge ε tr(C_t)/n · I.
        scale: λ on the merged update; other than 1 it is no minimum any more.
        energy: share of each C_t's trace whose leading eigenpairs are kept; 1 keeps C_t as it is.
        forget: γ ≤ 1: C_t of the t-th of T tasks counts γ^(T − t).
        offdiag: factor on what is beside the diagonal of each C_t; RegMean recommends 0.9.
        normalize: `per_token` divides each C_t by its number of rows, `sum` does not.
        missing: a task without an update of this map has the update 0 there (`zero`), or is left out of
            Φ (`skip`).

    Raises:
        ValueError: an option is out of its range.

    Examples:
        >>> from submerge.algebra import LPM_PRESETS, LpmOptions
        >>> LpmOptions(**LPM_PRESETS["paper"]).scale
        3.0
    """

    ridge: float = 1e-3
    scale: float = 1.0
    energy: float = 1.0
    forget: float = 1.0
    offdiag: float = 1.0
    normalize: str = "per_token"
    missing: str = "zero"

    def __post_init__(self) -> None:
        for name, low in (("energy", 0), ("forget", 0), ("offdiag", -1e-300)):
            if not low < getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, which is not a share up to 1")
        if not 0 <= self.ridge < math.inf:
            raise ValueError(f"ridge is {self.ridge}, which is no finite number from 0")
        if not math.isfinite(self.scale):
            raise ValueError(f"scale is {self.scale}, which is no finite number")
        if self.normalize not in ("per_token", "sum") or self.missing not in ("zero", "skip"):
            raise ValueError("normalize is per_token or sum, missing is zero or skip")

    def prepared(self, moment: Moment) -> Moment:
        """Return C_t as it enters Φ: shrunk, normalised, truncated, and with its ridge, in this order."""
        if self.offdiag != 1:
            moment = moment.shrunk(self.offdiag)
        if self.normalize == "per_token":
            moment = moment.per_token()
        if self.energy != 1:
            moment = moment.truncated(self.energy)
        return moment.ridged(self.ridge)

    def divides_by_rounding(self, phi: Moment) -> bool:
        """Return whether Φ, of sums in float32, is near to singular for these, and hardly has a ridge."""
        noise = math.sqrt(phi.width) * torch.finfo(torch.float32).eps  # the norm of rounding of n inputs
        return self.ridge < type(self).ridge and phi.least_share < noise


LPM_PRESETS: Mapping[str, Mapping[str, float]] = {
    "default": {"scale": 1.0, "energy": 1.0},
    "paper": {"scale": 3.0, "energy": 0.999},
}
"""Options by the name of a preset; `paper` has the two constants that are known of LPM's experiments."""


def merge_least_squares(
    updates: Sequence[Update | None],
    moments: Iterable[Moment],
    options: LpmOptions | None = None,
    on_sum: Callable[[Moment], None] = lambda _: None,
) -> Update:
    """Return λ (Σ_t Δ_t C_t) Φ⁻¹: low-rank where every update is low-rank, else dense.

    One task's moment is used at a time, beside their sum: an iterator may read each when it is asked for.

    Args:
        updates: Δ_t of each task, in the order of the tasks; None or `Zero` where a task has none.
        moments: C_t of each task, of one kind, as they were collected.
        options: `LpmOptions()` by default.
        on_sum: called with Φ when it has been solved.

    Returns:
        The merged update, in the dtype of the first update.

    Raises:
        ValueError: no task has an update, none has inputs, or the moments do not add or are not of the
            updates' width.

    Examples:
        >>> import torch
        >>> from submerge.algebra import BlockMoment, LowRank, merge_least_squares
        >>> first = LowRank(torch.ones(3, 1), torch.tensor([[1.0, 0.0]]))
        >>> second = LowRank(torch.ones(3, 1), torch.tensor([[0.0, 5.0]]))
        >>> inputs = [torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])]
        >>> merged = merge_least_squares([first, second], [BlockMoment.of(x) for x in inputs])
        >>> merged.rank, merged.rows(0, 1).round(decimals=2)
        (2, tensor([[1., 5.]]))
    """
    options = options or LpmOptions()
    dtype = dtype_of(updates)
    phi: Moment | None = None
    weighted: Update | None = None  # Σ Δ_t C_t
    for update, moment in entering(updates, moments, options):
        phi = moment if phi is None else phi.added(moment)
        if update is not None:
            term = _by_inputs(update, moment.width, moment.times)
            weighted = term if weighted is None else weighted_sum([weighted, term], [1.0, 1.0])
    assert phi is not None
    assert weighted is not None
    if not phi.trace:
        raise ValueError("no task has inputs here")
    solved = _by_inputs(weighted, phi.width, phi.solve)
    on_sum(phi)
    return _cast(solved.scaled(options.scale), dtype)


def entering(
    updates: Sequence[Update | None], moments: Iterable[Moment], options: LpmOptions
) -> Iterator[tuple[Update | None, Moment]]:
    """Yield Δ_t (None for 0) and C_t, prepared and weighed, of each task that has a say."""
    for t, (update, collected) in enumerate(zip(updates, moments, strict=True)):
        missing = update is None or isinstance(update, Zero)
        if missing and options.missing == "skip":
            continue
        moment = options.prepared(collected)
        if options.forget != 1:
            moment = moment.scaled(options.forget ** (len(updates) - 1 - t))
        yield None if missing else update, moment


def dtype_of(updates: Sequence[Update | None]) -> torch.dtype:
    """Return the dtype of the first update that is one; raise `ValueError` where none is."""
    for update in updates:
        if isinstance(update, LowRank):
            return update.left.dtype
        if isinstance(update, (Dense, Streamed)):
            return update.dtype
    raise ValueError("no task has an update")


def _by_inputs(update: Update, width: int, function: Callable[[torch.Tensor], torch.Tensor]) -> Update:
    """Return Δ M for the function A -> A M of rows A [r, n], in float64: B (A M) for factors."""
    m, n = update.shape
    if n != width:
        raise ValueError(f"an update of {n} inputs does not meet a moment of {width}")
    if isinstance(update, LowRank):
        return LowRank(update.left.double(), function(update.right))
    product = torch.empty(m, n, dtype=torch.float64)
    for start in range(0, m, ROWS):
        product[start : start + ROWS] = function(update.rows(start, min(start + ROWS, m)))
    return Dense(product)


def _cast(update: Update, dtype: torch.dtype) -> Update:
    if isinstance(update, LowRank):
        return LowRank(update.left.to(dtype), update.right.to(dtype))
    return Dense(update.dense().to(dtype))
