"""Means on the sphere in Gram coordinates: every result is a combination Σ c_t θ_t.

SLERP and the Karcher mean never leave the span of their inputs, so the T×T matrix of inner
products determines the coefficients exactly; the weights themselves are read only twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

from submerge.deferred import np, npt

__all__ = ["karcher_coefficients", "slerp_coefficients"]

Matrix: TypeAlias = "npt.NDArray[np.float64]"

NOISE = 1e-3
"""A mean of unit vectors no longer than this, or an angle so near to π, has no direction that a Gram
matrix of float32 sums could tell from rounding."""


def slerp_coefficients(cos: float, t: float, linear_above: float) -> tuple[float, float]:
    """Return (a, b) of a·v0 + b·v1 on the great arc from v0 (t = 0) to v1 (t = 1).

    a = sin((1−t)Ω)/sinΩ, b = sin(tΩ)/sinΩ with Ω = arccos(cos) (Shoemake 1985); straight
    interpolation where |cos| > linear_above, for the arc is then a line, and between opposites, where
    it is not defined: near π its coefficients would amplify the rounding of cos without bound. Of NaN, as
    inner products beyond float64 give it, both are NaN.

    Examples:
        >>> from submerge.algebra import slerp_coefficients
        >>> [round(c, 4) for c in slerp_coefficients(cos=0.0, t=0.5, linear_above=0.9995)]
        [0.7071, 0.7071]
        >>> slerp_coefficients(cos=1.0, t=0.25, linear_above=0.9995)
        (0.75, 0.25)
    """
    if math.isnan(cos):
        return math.nan, math.nan
    cos = min(1.0, max(-1.0, cos))
    omega = math.acos(cos)
    if abs(cos) > linear_above or omega == 0 or omega > math.pi - NOISE:
        return 1 - t, t
    return math.sin((1 - t) * omega) / math.sin(omega), math.sin(t * omega) / math.sin(omega)


def karcher_coefficients(gram: Matrix, weights: Sequence[float], max_iter: int, tol: float) -> Matrix:
    """Return c [T] such that Σ c_t θ_t is the weighted Karcher mean of the T inputs.

    With u_t = θ_t/‖θ_t‖ and weights α (sum 1) over the inputs of norm above tol:
    u ← exp_u(Σ α_t log_u u_t), from the normalised mean, until the step is no longer than tol or
    `max_iter` steps are done; the result is (Σ α_t ‖θ_t‖) u. An input opposite to u does not say
    which way to go, and has no part in that step. `gram` [T, T] is ⟨θ_s, θ_t⟩; where it holds NaN or
    Inf, all of c is NaN.

    Examples:
        >>> import numpy as np
        >>> from submerge.algebra import karcher_coefficients
        >>> karcher_coefficients(np.eye(2), [0.5, 0.5], max_iter=10, tol=1e-5).round(4).tolist()
        [0.7071, 0.7071]
    """
    norms = np.sqrt(np.diag(gram))
    if not np.isfinite(gram).all():
        return np.full_like(norms, np.nan)
    alpha = np.asarray(weights, dtype=np.float64)
    used = norms > tol
    if not used.any():
        return np.zeros_like(norms)
    shares = np.where(used, alpha, 0.0) / math.fsum(alpha[used])
    reciprocals = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
    cosines = gram * np.outer(reciprocals, reciprocals)
    mean = _mean_direction(cosines, shares, np.flatnonzero(used), max_iter, tol)
    result: Matrix = _inner(alpha, norms) * mean * reciprocals
    return result


def _mean_direction(
    cosines: Matrix, shares: Matrix, used: npt.NDArray[np.intp], max_iter: int, tol: float
) -> Matrix:
    """Return the Karcher mean of unit inputs as coefficients of them, from their cosines [T, T]."""
    mean = shares.copy()
    length = _norm(mean, cosines)
    if length <= max(tol, NOISE):  # the inputs cancel; any of them is as good a start
        mean = np.eye(len(shares))[int(used[0])]
    else:
        mean /= length
    for _ in range(max_iter):
        tangent = _mean_tangent(mean, cosines, shares, used, tol)
        length = _norm(tangent, cosines)
        if length <= tol:
            break
        mean = math.cos(length) * mean + math.sin(length) / length * tangent  # exp_u
        size = _norm(mean, cosines)  # 1 but for rounding, which would add up over the steps
        if size > tol:
            mean /= size
    return mean


def _mean_tangent(
    mean: Matrix, cosines: Matrix, shares: Matrix, used: npt.NDArray[np.intp], tol: float
) -> Matrix:
    """Return Σ α_t log_u u_t, with log_u v = θ / sin θ (v − cos θ u) for the angle θ of u and v."""
    tangent = np.zeros_like(mean)
    for t in used:
        dot = min(1.0, max(-1.0, _inner(mean, cosines[t])))
        theta = math.acos(dot)
        if theta <= tol or theta > math.pi - NOISE:
            continue
        step = shares[t] * theta / math.sin(theta)
        tangent -= step * dot * mean
        tangent[t] += step
    return tangent


def _norm(coefficients: Matrix, cosines: Matrix) -> float:
    """Return ‖Σ c_t u_t‖ for unit vectors u_t."""
    return math.sqrt(max(0.0, _inner(np.outer(coefficients, coefficients).ravel(), cosines.ravel())))


def _inner(x: Matrix, y: Matrix) -> float:
    """Return ⟨x, y⟩, rounded once: a BLAS would round it by the processor."""
    return math.fsum(x * y)
