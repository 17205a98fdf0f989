"""Whether the ratio of each adapter falls as its coefficient grows, before any coefficient is learned."""

from __future__ import annotations

from collections.abc import Sequence

from submerge.calibrate._batches import EncodedItems
from submerge.calibrate._measurement import BatchCounter, Measurement, Progress
from submerge.calibrate._null_space import CURVE, curve_of
from submerge.calibrate._null_space_results import NullSpaceCurve
from submerge.calibrate._sources import Inputs
from submerge.calibrate._spaced import count_items, spaced

__all__ = ["first_curve", "rising"]

INPUTS = 64


def first_curve(
    measurement: Measurement, data: Sequence[Inputs], progress: Progress | None = None
) -> NullSpaceCurve:
    """Return ω(λ) of each adapter alone, on up to 64 inputs of its own, evenly spaced, or one batch."""
    some = [_some(batches) for batches in data]
    return curve_of(measurement, CURVE, some, BatchCounter(progress, len(CURVE) * sum(map(len, some))))


def rising(curve: NullSpaceCurve) -> frozenset[int]:
    """Return the places of the adapters whose ratio does not fall with λ."""
    return frozenset(k for k, falls in enumerate(curve.falls) if not falls)


def _some(batches: Inputs) -> Inputs:
    """Return inputs of all parts of the data; batches of tensors are taken whole."""
    if isinstance(batches, EncodedItems):
        return batches.spaced(INPUTS)
    sizes = [count_items(batch) for batch in batches]
    counts = range(min(len(sizes), INPUTS), 0, -1)
    return spaced(batches, next((n for n in counts if sum(spaced(sizes, n)) <= INPUTS), 1))
