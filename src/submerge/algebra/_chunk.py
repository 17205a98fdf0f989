"""A chunk: the same run of elements of every model's update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from submerge.algebra._random import bernoulli, uniform
from submerge.deferred import torch
from submerge.deprecated import warn_renamed

__all__ = ["Chunk"]

_BERNOULLI_ROW = -1  # the scratch row of `bernoulli`; folds count theirs from 0


@dataclass(slots=True)
class Chunk:
    """A run of consecutive elements of one tensor, seen in every model at once.

    Attributes:
        start: index of the first element in the flattened tensor.
        updates: shape [T, n], float32 (float64 where an input is), one row a model. Its owner
            refills it for every pass, so a fold may overwrite it.
        width: the run length that the method asked for; n is a multiple of it.
        finite: whether every value of `updates` is finite.
        keys: for each model, the key of its stream of random numbers (see `algebra.stream_key`).
        spare: where `scratch` takes its rows from; without it they are new ones.
        rounding: the share of itself by which an element may be off when it is computed again, and by which
            equal ones may differ: 0 for values that were read, more where an adapter's product is among them.

    Examples:
        >>> import torch
        >>> from submerge.algebra import Chunk, stream_key
        >>> keys = [stream_key(0, "weight", t) for t in (0, 1)]
        >>> chunk = Chunk(start=0, updates=torch.arange(12.0).view(2, 6), width=3, finite=True, keys=keys)
        >>> chunk.rows.shape
        torch.Size([2, 2, 3])
        >>> chunk.bernoulli(0, 1.0)
        tensor([1., 1., 1., 1., 1., 1.])
        >>> bool((chunk.draw(0) != chunk.draw(1)).any())
        True
    """

    start: int
    updates: torch.Tensor
    width: int
    finite: bool
    keys: Sequence[int]
    spare: Callable[[int], torch.Tensor] | None = None
    rounding: float = 0.0

    @property
    def rows(self) -> torch.Tensor:
        """The updates as [T, n / width, width]."""
        return self.updates.view(self.updates.shape[0], -1, self.width)

    def scratch(self, index: int) -> torch.Tensor:
        """Return working row `index` (from 0), [n], of the updates' type. It holds anything, and is good for
        this chunk alone: rows that are used again cost no new pages."""
        return self.spare(index) if self.spare else torch.empty_like(self.updates[0])

    def draw(self, t: int) -> torch.Tensor:
        """Return a number in [0, 1) for each element [n], from the stream of model t."""
        return uniform(self.keys[t], self.start, self.updates.shape[1]).to(self.updates.device)

    def bernoulli(self, t: int, probability: float) -> torch.Tensor:
        """Return 1 with this probability, else 0, for each element [n], from the stream of model t.

        The numbers are of the updates' type, and are overwritten by the next draw.
        """
        draws = bernoulli(self.keys[t], self.start, self.updates.shape[1], probability)
        return self.scratch(_BERNOULLI_ROW).copy_(draws)

    def toss(self, t: int, probability: float) -> torch.Tensor:
        """Return what `bernoulli` does: its old name, which warns."""
        warn_renamed("Chunk.toss", "Chunk.bernoulli")
        return self.bernoulli(t, probability)
