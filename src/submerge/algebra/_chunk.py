"""A chunk: the same run of elements of every model's update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from submerge.algebra._random import bernoulli, uniform
from submerge.deferred import np, npt, torch
from submerge.deprecated import warn_renamed

__all__ = ["Chunk"]

_BERNOULLI_ROW = -1  # the scratch row of `bernoulli`; folds count theirs from 0


class Chunk:
    """A run of consecutive elements of one tensor, seen in every model at once.

    The updates are there as an array, `values`, on which the library's own folds run compiled loops
    (`submerge.kernels`), and as a tensor, `updates`, for folds that are written with torch. On the CPU both
    are the same memory. A fold and a reduction take either, and return either.

    Attributes:
        start: index of the first element in the flattened tensor.
        width: the run length that the method asked for; n is a multiple of it.
        finite: whether every value of the updates is finite.
        keys: for each model, the key of its stream of random numbers (see `algebra.stream_key`).
        rounding: the share of itself by which an element may be off when it is computed again, and by which
            equal ones may differ: 0 for values that were read, more where an adapter's product is among them.
        device: where `updates` are.

    Args:
        updates: shape [T, n], float32 (float64 where an input is), one row a model: an array, or a tensor.
            Its owner refills it for every pass, so a fold may overwrite it.
        spare: where `row` and `scratch` take their rows from; without it they are new ones.

    Examples:
        >>> import torch
        >>> from submerge.algebra import Chunk, stream_key
        >>> keys = [stream_key(0, "weight", t) for t in (0, 1)]
        >>> chunk = Chunk(start=0, updates=torch.arange(12.0).view(2, 6), width=3, finite=True, keys=keys)
        >>> chunk.rows.shape
        torch.Size([2, 2, 3])
        >>> chunk.values.shape, chunk.values.dtype
        ((2, 6), dtype('float32'))
        >>> chunk.bernoulli(0, 1.0)
        tensor([1., 1., 1., 1., 1., 1.])
        >>> bool((chunk.draw(0) != chunk.draw(1)).any())
        True
    """

    __slots__ = ("_updates", "_values", "device", "finite", "keys", "rounding", "spare", "start", "width")

    def __init__(
        self,
        start: int,
        updates: npt.NDArray[Any] | torch.Tensor,
        width: int,
        finite: bool,
        keys: Sequence[int],
        spare: Callable[[int], npt.NDArray[Any]] | None = None,
        rounding: float = 0.0,
        device: str | torch.device = "cpu",
    ) -> None:
        self.start, self.width, self.finite = start, width, finite
        self.keys, self.spare, self.rounding = keys, spare, rounding
        self._values: npt.NDArray[Any] | None = None
        self._updates: torch.Tensor | None = None
        if isinstance(updates, np.ndarray):
            self._values, self.device = updates, device
        else:
            self._updates, self.device = updates, updates.device

    @property
    def values(self) -> npt.NDArray[Any]:
        """The updates as an array [T, n] in the CPU's memory, whose rows are contiguous."""
        if self._values is None:
            self._values = self.updates.cpu().numpy()
        return self._values

    @property
    def updates(self) -> torch.Tensor:
        """The updates as a tensor [T, n]; on a device other than the CPU a copy of `values`."""
        if self._updates is None:
            self._updates = torch.from_numpy(self._values).to(self.device)
        return self._updates

    def row(self, index: int) -> npt.NDArray[Any]:
        """Return working row `index` (from 0), an array [n] of the updates' type. It holds anything, and is
        good for this chunk alone: rows that are used again cost no new pages."""
        return self.spare(index) if self.spare else np.empty_like(self.values[0])

    @property
    def rows(self) -> torch.Tensor:
        """The updates as [T, n / width, width]."""
        return self.updates.view(self.updates.shape[0], -1, self.width)

    def scratch(self, index: int) -> torch.Tensor:
        """Return what `row` does, as a tensor where the updates are."""
        if self.updates.device.type == "cpu":
            return torch.from_numpy(self.row(index))
        return torch.empty_like(self.updates[0])

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
