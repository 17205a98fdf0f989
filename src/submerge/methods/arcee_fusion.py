"""Arcee Fusion: of two models, the elements whose change is important come from the second.

The importance of an element is |Δ| times the divergence of its row, KL(softmax θ_1 ‖ softmax θ_0) along the
last axis. Taken are the elements whose importance is at least

    median + 1.5 (q_3 − q_1)

of the tensor's importances, with their quartiles q_1 and q_3. It is mergekit's method, by Arcee AI.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from submerge.algebra import Chunk, Reduction, kth_largest, row_products, row_sums
from submerge.deferred import np, npt
from submerge.kernels import exponentials, keep_where, logarithms
from submerge.methods._base import FoldPlan, Method, TensorSpec, Values

__all__ = ["METHODS"]

Vector: TypeAlias = "npt.NDArray[np.float64]"

SMALLEST = 1e-8
"""What is added to each probability (as in mergekit)."""
WHISKER = 1.5
"""How many ranges between the quartiles above the median an outlier begins."""


def _width(spec: TensorSpec, o: Values) -> int:
    return max(1, spec.shape[-1]) if spec.shape else 1


class _Divergences(Reduction[Vector, Vector]):
    """KL(softmax θ_1 ‖ softmax θ_0) of each row of a tensor, float64, shape [rows]."""

    def observe(self, chunk: Chunk) -> Vector:
        """Return those of the chunk's rows."""
        q, p = (_probabilities(values, chunk.width) for values in chunk.values)
        ratios = np.divide(p, q, out=q)
        logarithms(ratios.reshape(-1))
        return np.maximum(row_products(p, ratios), 0)

    def combine(self, parts: Sequence[Vector]) -> Vector:
        """Return those of the tensor's rows."""
        return np.concatenate(parts)


def _probabilities(values: npt.NDArray[Any], width: int) -> Vector:
    """Return the softmax of each row, and `SMALLEST` more, [rows, width] in float64.

    Of weights, which are small, the divergence is a small difference of large terms: float32 leaves little.
    """
    p = values.reshape(-1, width).astype(np.float64)
    p -= p.max(1, keepdims=True)
    exponentials(p.reshape(-1))
    p /= row_sums(p)[:, np.newaxis]
    p += SMALLEST
    return p


def _of_elements(divergences: Vector, chunk: Chunk) -> npt.NDArray[Any]:
    """Return the divergence of each element's row [n]; a sample's chunk may begin and end within rows."""
    end = chunk.start + chunk.values.shape[1]
    first = chunk.start // chunk.width
    rows = divergences[first : -(-end // chunk.width)].astype(chunk.values.dtype)
    before = first * chunk.width
    return np.repeat(rows, chunk.width)[chunk.start - before : end - before]


def _plan(spec: TensorSpec, o: Values) -> FoldPlan:
    divergences = yield _Divergences()

    def importance(chunk: Chunk, row: int = 0) -> npt.NDArray[Any]:
        """Return the importance of each element, in scratch row 0."""
        base, tuned = chunk.values
        changes: npt.NDArray[Any] = np.subtract(tuned, base, out=chunk.row(0))
        np.abs(changes, out=changes)
        changes *= _of_elements(divergences, chunk)
        return changes

    last = spec.numel - 1
    ranks = [spec.numel - quarters * last // 4 for quarters in (3, 2, 1)]
    ((high, median, low),) = yield from kth_largest(spec.numel, [ranks], importance)
    threshold = median + WHISKER * (high - low)

    def fold(chunk: Chunk) -> npt.NDArray[Any]:
        keep = (importance(chunk) >= threshold * (1 - 4 * chunk.rounding)).view(np.uint8)
        base, update = chunk.values
        update -= base
        keep_where(update, keep)
        merged: npt.NDArray[Any] = np.add(base, update, out=update)
        return merged

    return fold


METHODS = (
    Method(
        name="arcee_fusion",
        title="Arcee Fusion",
        equation="θ = θ_0 + Δ where |Δ| KL_row ≥ median + 1.5 (q_3 − q_1), else θ_0",
        source="Arcee AI, https://arcee.ai; mergekit",
        use="One model with what another changes most, some outliers of each tensor; nothing to tune.",
        plan=_plan,
        origin="zero",
        base_is_model=True,
        base_required=True,
        min_models=2,
        max_models=2,
        width=_width,
        differs="mergekit computes the divergences in the weights' own format, where they are mostly "
        "rounding, and takes the quartiles of a larger tensor from a million elements drawn at random; here "
        "both are exact.",
    ),
)
