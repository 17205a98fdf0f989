"""MagPrune, the sparsifier of DELLA: entries are kept at random, those of large magnitude more often."""

from __future__ import annotations

from submerge.algebra import Chunk, keep_random, random_words
from submerge.deferred import np, npt
from submerge.errors import Problem, RequestError
from submerge.kernels import keep_by_rank, keep_where, rank
from submerge.methods._base import TensorSpec, Values
from submerge.methods._masks import MaskPlan

__all__ = ["magprune", "refuse_magprune"]

REMEMBERED = 1 << 27
"""The most elements of a tensor whose masks are kept from its first pass to its second: a bit for each model
and element, and no more than the memory that is planned for searches of thresholds; MagPrune has none."""


def refuse_magprune(spec: TensorSpec, o: Values) -> None:
    """Raise `RequestError` where a probability of `magprune` would be none."""
    for density, epsilon in zip(o["density"], o["epsilon"], strict=True):
        if 0 < density < 1 and not (0 < density - epsilon and density + epsilon < 1):
            what = f"density {density:g} ± epsilon {epsilon:g} leaves the range (0, 1)"
            hint = "choose epsilon below both density and 1 − density"
            raise RequestError(Problem(what, f"tensor {spec.name}", hint))


def magprune(spec: TensorSpec, o: Values) -> MaskPlan:
    """Keep entries with a probability that grows with their rank by magnitude in their row (DELLA, MagPrune).

    p_i = density − ε + 2ε (rank_i − 1)/(n − 1), rank 1 the smallest, rows along the last axis.
    `variant: paper` divides what is kept by p_i. (arXiv 2406.11617.)
    """
    yield from ()  # no reduction is needed
    unbiased = o["rescale"] and o["variant"] == "paper"
    measured = o["rescale"] and not unbiased  # by a pass of its own, which makes the same masks
    masks = _Masks(spec.count, spec.numel if measured and spec.numel <= REMEMBERED else 0)

    def mask(chunk: Chunk) -> None:
        for t, (density, epsilon) in enumerate(zip(o["density"], o["epsilon"], strict=True)):
            row = chunk.values[t]
            if density <= 0:
                row[:] = 0
            elif density < 1 and (not epsilon or chunk.width == 1):
                keep_random(row, chunk.keys[t], chunk.start, density, 1 / density if unbiased else 1.0)
            elif density < 1:
                keep = masks.get(t, chunk)
                if keep is None:
                    keep = _kept(chunk, t, density, epsilon)
                    masks.put(t, chunk, keep)
                if unbiased:
                    ranks = rank(row, chunk.width)
                    np.divide(row, density - epsilon + 2 * epsilon / (chunk.width - 1) * ranks, out=row)
                keep_where(row, keep)

    return mask


class _Masks:
    """The masks of a tensor's chunks as bits [T, numel], without chunks that do not begin with a byte."""

    def __init__(self, count: int, numel: int) -> None:
        self._bits = np.empty((count, -(-numel // 8)), np.uint8)
        self._known: set[tuple[int, int]] = set()

    def put(self, t: int, chunk: Chunk, keep: npt.NDArray[np.uint8]) -> None:
        """Take in the mask of one model in a chunk."""
        if self._bits.size and chunk.start % 8 == 0:
            bits = np.packbits(keep)
            self._bits[t, chunk.start // 8 :][: bits.size] = bits
            self._known.add((t, chunk.start))

    def get(self, t: int, chunk: Chunk) -> npt.NDArray[np.uint8] | None:
        """Return the mask that was put in, or None."""
        if (t, chunk.start) not in self._known:
            return None
        return np.unpackbits(self._bits[t, chunk.start // 8 :], count=chunk.values.shape[1])


def _kept(chunk: Chunk, t: int, density: float, epsilon: float) -> npt.NDArray[np.uint8]:
    """Return which entries are kept: 1 or 0 [n], in a scratch row."""
    values = chunk.values[t]
    words = chunk.row(0).view(np.uint32)[: values.size]
    keep = chunk.row(1).view(np.uint8)[: values.size]
    random_words(chunk.keys[t], chunk.start, words)
    keep_by_rank(values, chunk.width, words, density - epsilon, density + epsilon, keep)
    return keep
