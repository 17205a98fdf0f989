"""WUDI in closed form: the sum of the updates, moved towards what each of them does to its own inputs.

The rows of an update Δ_t span about the inputs of its task. So the merged update Δ should act on them as Δ_t
does, which is a least-squares problem without data (WUDI):

    L(Δ) = ½ Σ ‖(Δ − Δ_t) Δ_tᵀ‖² / ‖Δ_t‖²,     ∇L(Δ) = Δ C − D,
    C = Σ Δ_tᵀ Δ_t / ‖Δ_t‖² = V diag(λ) Vᵀ,     D = Σ Δ_t Δ_tᵀ Δ_t / ‖Δ_t‖².

Descent from the sum Δ_0 = Σ Δ_t to the minimum D C⁺ goes along the eigenvectors of C, each at its own rate λ,
and is best stopped on the way: small λ are mostly noise. With f the share of the way that each has gone,

    θ = θ_0 + scale (Δ_0 + (D C⁺ − Δ_0) V diag(f) Vᵀ).

`swudi`: f = 1 − exp(−λ t), the gradient flow at the time t, for the leading K = ⌈fraction n⌉ of n directions,
and 0 for the others. `aswudi`: f = 1 for the leading K = ⌈(Σ √λ)² / Σ λ⌉, the effective number of directions,
and 0 for the others.

It is computed as a sum over the updates: θ − θ_0 = scale Σ Δ_t A_t with A_t = I + (C_t C⁺ − I) V diag(f) Vᵀ,
which is n × n, and C_t = Δ_tᵀ Δ_t / ‖Δ_t‖². A weight w_t puts w_t Δ_t in the place of Δ_t; C_t stays. The
trace of C is T, so that t means the same for updates of any size.
SWUDI and ASWUDI: OptMerge, Wei et al. 2025, arXiv 2505.19892, and its code; WUDI: Cheng et al. 2025, arXiv
2503.08099.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

from submerge.algebra import Dense, LowRank, Streamed, Update, Zero, frame, rooted
from submerge.deferred import torch
from submerge.methods._base import Merged, Method, Option, TensorSpec, Values
from submerge.methods._matrix import WEIGHT, mean_plan, negligible, touching

__all__ = ["METHODS"]

Terms: TypeAlias = Sequence[tuple[Update, float]]
"""Updates Δ_t, and their weights."""

OPTIONS = (
    WEIGHT,
    Option("scale", float, 1.0, "factor on the merged update", tune=True),
    Option("variant", str, "swudi", "how far each direction goes", choices=("swudi", "aswudi")),
    Option("time", float, 1300.0, "swudi: time t of the descent; 0 is the sum", low=0),
    Option("fraction", float, 0.65, "swudi: share of the n input directions that move", low=0, high=1),
)

SAME = 1e-9
"""The share by which a computed number of directions may exceed a whole one and count as that."""


def _matrix(updates: Sequence[Update], spec: TensorSpec, o: Values) -> Merged:
    core_space = frame(updates)
    core, terms = core_space.cores[0], touching(core_space, o["weight"])
    roots, vectors = rooted(_summed_grams(terms, core.shape[1]), negligible(core_space))
    if not len(roots):
        return Merged(core_space.lift(Zero(core.shape)), {"k": 0, "solved": 0.0})
    filtered = _filter(roots, spec.shape[1], o)
    k, energies = len(filtered), roots.square()
    vectors = vectors[:, :k]
    projector = (vectors * filtered) @ vectors.T  # V diag(f) Vᵀ
    inverse = (vectors * (filtered / energies[:k])) @ vectors.T  # C⁺ V diag(f) Vᵀ
    del vectors  # as large as either, and two more such matrices are to come
    merged = _moved(terms, projector, inverse, o["scale"])
    figures = {"k": k, "solved": float(filtered @ energies[:k] / energies.sum())}
    return Merged(core_space.lift(Dense(merged)), figures)


def _summed_grams(terms: Terms, n: int) -> torch.Tensor:
    """Return C [n, n] = Σ Δ_tᵀ Δ_t / ‖Δ_t‖², in float64."""
    total = torch.zeros(n, n, dtype=torch.float64)
    for update, _ in terms:
        total += _normalised_gram(update)
    return total


def _normalised_gram(update: Update) -> torch.Tensor:
    """Return Δᵀ Δ / ‖Δ‖² [n, n], in float64; zeros for Δ = 0.

    What holds NaN or Inf is refused as a decomposition would: LAPACK does not always do so.
    """
    gram = update.column_gram()
    energy = float(gram.trace())
    if not math.isfinite(energy):
        raise torch.linalg.LinAlgError("an update holds NaN or Inf")  # type: ignore[attr-defined]
    return gram.div_(energy) if energy else gram


def _filter(roots: torch.Tensor, n: int, o: Values) -> torch.Tensor:
    """Return f of the leading K directions, for the descending √λ of those that are not rounding."""
    if o["variant"] == "aswudi":
        return torch.ones_like(roots[: _whole(float(roots.sum()) ** 2 / float(roots.square().sum()))])
    return -torch.expm1(roots[: _whole(o["fraction"] * n)].square() * -o["time"])


def _whole(count: float) -> int:
    """Return the count rounded up, unless it exceeds a whole number by rounding alone."""
    return math.ceil(count * (1 - SAME))


def _moved(terms: Terms, projector: torch.Tensor, inverse: torch.Tensor, scale: float) -> torch.Tensor:
    """Return scale Σ w_t Δ_t A_t [m, n], in the updates' dtype, for V diag(f) Vᵀ and C⁺ V diag(f) Vᵀ.

    One A_t is in memory at a time. The products are of float64, as D C⁺ is a sum of terms that may be
    1 / √λ times as large as itself.
    """
    first, _ = terms[0]
    out = torch.zeros(first.shape, dtype=_dtype(first))
    for update, weight in terms:
        factor = _normalised_gram(update) @ inverse
        factor.sub_(projector).diagonal().add_(1)
        factor.mul_(weight * scale)
        _add_product(out, update, factor)
    return out


def _dtype(update: Update) -> torch.dtype:
    """Return the type of an update's entries."""
    if isinstance(update, LowRank):
        return update.left.dtype
    assert isinstance(update, (Dense, Streamed))
    return update.dtype


def _add_product(out: torch.Tensor, update: Update, factor: torch.Tensor) -> None:
    """Add Δ A to `out`, by blocks of rows; the product of a low-rank update's right factor comes first."""
    if isinstance(update, LowRank):
        out.addmm_(update.left.to(out.dtype), (update.right.double() @ factor).to(out.dtype))
        return
    assert isinstance(update, (Dense, Streamed))
    for at, rows in update.blocks(torch.float64):
        out[at] += rows @ factor


METHODS = (
    Method(
        name="wudi",
        title="WUDI in closed form (SWUDI, ASWUDI)",
        equation="θ = θ_0 + scale (Δ_0 + (D C⁺ − Δ_0) V diag(f) Vᵀ), C = Σ Δ_tᵀΔ_t/‖Δ_t‖² = V diag(λ) Vᵀ, "
        "D = Σ Δ_tΔ_tᵀΔ_t/‖Δ_t‖², Δ_0 = Σ Δ_t",
        source="Wei et al. 2025, arXiv 2505.19892; WUDI: Cheng et al. 2025, arXiv 2503.08099",
        use="Many different tasks of one base, without data: each keeps its effect on its own inputs.",
        plan=mean_plan,
        matrix=_matrix,
        both_sides=True,
        options=OPTIONS,
        differs="directions below rounding have no inverse, where the authors' code sets their λ to 1e-8; "
        "its default time is 300, here it is 1300, which they take for CLIP ViT-B/32",
    ),
)
