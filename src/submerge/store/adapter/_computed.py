"""Updates that are computed from an adapter's tensors, and are no product of two factors in its file."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

from submerge.deferred import torch
from submerge.store.format import TensorEntry

__all__ = ["ComputedUpdate", "Read", "SharedBlocks", "SizedUpdate", "Spectrum"]

Read: TypeAlias = Callable[[TensorEntry], "torch.Tensor"]
"""Returns an entry's values, in float32 or wider."""


class ComputedUpdate(ABC):
    """An update [m, n] of a parameter, with all dimensions after the first as one.

    `product` is how the literature calls it.
    """

    product: str

    @property
    def shape(self) -> None:
        """Which shape the parameter has, the base alone tells."""
        return None

    @property
    @abstractmethod
    def matrix(self) -> tuple[int, ...]:
        """The shape [m, n] as far as the file tells it."""

    @property
    @abstractmethod
    def factor_entries(self) -> tuple[TensorEntry, ...]:
        """The tensors of which each makes the update zero where it is zero."""

    @property
    def settings(self) -> dict[str, float]:
        """What the configuration says of it, by the name of a tensor in the file."""
        return {}

    def fitted(self, shape: tuple[int, ...], *, either_layout: bool) -> ComputedUpdate | None:
        """Return the update of a parameter of a shape, or None where it does not fit.

        With `either_layout` it may be stored as [inputs, outputs].
        """
        del either_layout
        return self if shape and self.matrix == (shape[0], math.prod(shape[1:])) else None

    @abstractmethod
    def values(self, read: Read) -> torch.Tensor:
        """Return the update [m, n] with its scale."""


@dataclass(frozen=True)
class SizedUpdate(ComputedUpdate):
    """An update whose size only the base tells: `size` is [outputs, inputs], and (0, 0) until it is known.

    `transposed` says that the parameter is stored as [inputs, outputs].
    """

    entry: TensorEntry
    transposed: bool = False
    size: tuple[int, int] = (0, 0)

    @property
    def factor_entries(self) -> tuple[TensorEntry, ...]:
        return (self.entry,)

    @property
    def matrix(self) -> tuple[int, ...]:
        outputs, inputs = self.size
        return (inputs, outputs) if self.transposed else (outputs, inputs)

    def fitted(self, shape: tuple[int, ...], *, either_layout: bool) -> ComputedUpdate | None:
        layouts = (self.transposed, not self.transposed) if either_layout else (self.transposed,)
        for transposed in layouts if len(shape) == 2 else ():
            size = (shape[1], shape[0]) if transposed else (shape[0], shape[1])
            if self.takes(*size):
                return replace(self, transposed=transposed, size=size)
        return None

    @abstractmethod
    def takes(self, outputs: int, inputs: int) -> bool:
        """Return whether it can be the update of a map of this size."""

    def values(self, read: Read) -> torch.Tensor:
        update = self.update(read(self.entry))
        return update.mT if self.transposed else update

    @abstractmethod
    def update(self, values: torch.Tensor) -> torch.Tensor:
        """Return the update [outputs, inputs] from the values in the file."""


@dataclass(frozen=True)
class Spectrum(SizedUpdate):
    """FourierFT: scale · Re(ifft2(F)), F with the file's values at places drawn by a seed (2405.03003)."""

    scale: float = 1.0
    seed: int = 0
    product: str = "FourierFT"

    @property
    def settings(self) -> dict[str, float]:
        return {self.entry.name: self.scale, f"{self.entry.name}.random_loc_seed": float(self.seed)}

    def takes(self, outputs: int, inputs: int) -> bool:
        return self.entry.numel <= outputs * inputs

    def update(self, values: torch.Tensor) -> torch.Tensor:
        outputs, inputs = self.size
        draw = torch.Generator().manual_seed(self.seed)
        places = torch.randperm(outputs * inputs, generator=draw)[: values.numel()]
        spectrum = torch.zeros(outputs * inputs, dtype=values.dtype)
        spectrum[places] = values.flatten()
        update: torch.Tensor = torch.fft.ifft2(spectrum.view(outputs, inputs)).real
        return update * self.scale


@dataclass(frozen=True)
class SharedBlocks(SizedUpdate):
    """MiSS: one block [r, m] is the update of each r inputs in turn, over all n of them (2409.15371).

    A block of fewer than m columns stands for all outputs, one after the other.
    """

    product: str = "MiSS"

    def takes(self, outputs: int, inputs: int) -> bool:
        rank, columns = self.entry.shape
        return rank <= inputs and outputs % columns == 0

    def update(self, values: torch.Tensor) -> torch.Tensor:
        outputs, inputs = self.size
        rank, columns = values.shape
        rows = values.T.repeat(outputs // columns, 1)
        return rows.repeat(1, -(-inputs // rank))[:, :inputs]
