"""Whether the ratio of each adapter falls as its coefficient grows, before any coefficient is learned."""

from __future__ import annotations

from collections.abc import Sequence

from submerge.calibrate._measurement import BatchCounter, Measurement, Progress
from submerge.calibrate._null_space import CURVE, curve_of
from submerge.calibrate._null_space_results import NullSpaceCurve
from submerge.calibrate._record import count_items
from submerge.calibrate._sources import Inputs

__all__ = ["first_curve", "rising"]

INPUTS = 64


def first_curve(
    measurement: Measurement, data: Sequence[Inputs], progress: Progress | None = None
) -> NullSpaceCurve:
    """Return ω(λ) of each adapter alone, on the first batches of its own, up to 64 inputs or one batch."""
    first = [_first(batches) for batches in data]
    return curve_of(measurement, CURVE, first, BatchCounter(progress, len(CURVE) * sum(map(len, first))))


def rising(curve: NullSpaceCurve) -> frozenset[int]:
    """Return the places of the adapters whose ratio does not fall with λ."""
    return frozenset(k for k, falls in enumerate(curve.falls) if not falls)


def _first(batches: Inputs) -> Inputs:
    count = 0
    for place, batch in enumerate(batches):
        count += count_items(batch)
        if count > INPUTS:
            return batches[: max(place, 1)]
    return batches
