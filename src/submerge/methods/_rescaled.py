"""The factors that restore the L1 norms of masked updates."""

from __future__ import annotations

from collections.abc import Generator
from functools import partial
from typing import Any

from submerge.algebra import Chunk, Reduction, Totals
from submerge.kernels import sum_magnitudes
from submerge.methods._base import TensorSpec, Values
from submerge.methods._magprune import magprune
from submerge.methods._masks import Mask, Sparsifier, dropped_norms, random_drop

__all__ = ["rescaled"]

SHORTEST = 1e-7
"""An L1 norm below this is not restored: it would be a division by noise."""


def rescaled(
    sparsifier: Sparsifier, spec: TensorSpec, o: Values
) -> Generator[Reduction[Any, Any], Any, tuple[Mask, list[float]]]:
    """Plan the sparsifier, and the factor for each model that restores its update's L1 norm.

    With `rescale` and mergekit's variant the factor is Σ|Δ| / Σ|masked Δ| over the tensor, which
    one more pass measures; with `variant: paper` the sparsifier itself divides by probabilities.
    """
    mask = yield from sparsifier(spec, o)
    by_probability = o.get("variant") == "paper" and sparsifier in (random_drop, magprune)
    if not o["rescale"] or by_probability:
        return mask, [1.0] * spec.count

    def norms(chunk: Chunk) -> list[Any]:
        before = [sum_magnitudes(row) for row in chunk.values]
        mask(chunk)
        return [before, [sum_magnitudes(row) for row in chunk.values]]

    is_drop = sparsifier is random_drop  # whose norms take no mask
    before, after = yield Totals(partial(dropped_norms, densities=o["density"]) if is_drop else norms)
    return mask, [
        b / a if b >= SHORTEST and a >= SHORTEST else 1.0
        for b, a in zip(before.tolist(), after.tolist(), strict=True)
    ]
