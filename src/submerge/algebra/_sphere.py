"""Means on the sphere in Gram coordinates: every result is a combination Σ c_t θ_t.

SLERP and the Karcher mean never leave the span of their inputs, so the T×T matrix of inner
products determines the coefficients exactly; the weights themselves are read only twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["karcher_coefficients", "slerp_coefficients"]

Matrix = npt.NDArray[np.float64]

NOISE = 1e-3
"""A mean of unit vectors no longer than this, or an angle so near to π, has no direction that a Gram
matrix of float32 sums could tell from rounding."""


def slerp_coefficients(cos: float, t: float, linear_above: float) -> tuple[float, float]:
    """Return (a, b) of a·v0 + b·v1 on the great arc from v0 (t = 0) to v1 (t = 1).

    a = sin((1−t)Ω)/sinΩ, b = sin(tΩ)/sinΩ with Ω = arccos(cos) (Shoemake 1985); straight
    interpolation where |cos| > linear_above, for the arc is then a line, and between opposites, where
    it is not defined: near π its coefficients would amplify the rounding of cos without bound.
    """
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
    """
    norms = np.sqrt(np.diag(gram))
    if not np.isfinite(gram).all():
        return np.full_like(norms, np.nan)
    alpha = np.asarray(weights, dtype=np.float64)
    used = norms > tol
    if not used.any():
        return np.zeros_like(norms)
    share = np.where(used, alpha, 0.0) / alpha[used].sum()
    unit = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
    cosines = gram * np.outer(unit, unit)  # between unit inputs; u = Σ mean_t u_t below

    def norm(c: Matrix) -> float:
        return math.sqrt(max(0.0, float(c @ cosines @ c)))

    mean = share.copy()
    length = norm(mean)
    if length <= max(tol, NOISE):
        mean = np.eye(len(norms))[int(np.flatnonzero(used)[0])]
    else:
        mean /= length
    for _ in range(max_iter):
        tangent = np.zeros_like(mean)
        for t in np.flatnonzero(used):
            dot = min(1.0, max(-1.0, float(mean @ cosines[t])))
            theta = math.acos(dot)
            if theta <= tol or theta > math.pi - NOISE:
                continue
            step = share[t] * theta / math.sin(theta)
            tangent -= step * dot * mean
            tangent[t] += step
        length = norm(tangent)
        if length <= tol:
            break
        mean = math.cos(length) * mean + math.sin(length) / length * tangent
        size = norm(mean)
        if size > tol:
            mean /= size
    result: Matrix = float(alpha @ norms) * mean * unit
    return result
