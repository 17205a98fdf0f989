"""Updates that are computed from an adapter's tensors, and are no product of two factors in its file."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from submerge.deferred import torch
from submerge.store.format import TensorEntry

__all__ = ["ComputedUpdate", "FactoredUpdate", "Read", "SharedBlocks", "SizedUpdate", "Spectrum", "Wavelets"]

Read: TypeAlias = Callable[[TensorEntry], "torch.Tensor"]
"""Returns an entry's values: floats in float32 or wider, anything else as it is."""


@dataclass(frozen=True)
class ComputedUpdate(ABC):
    """An update [m, n] of a parameter, with all dimensions after the first as one.

    `copy` is the parameter itself, as saved beside the update.
    """

    copy: TensorEntry | None = field(default=None, kw_only=True)

    @property
    @abstractmethod
    def kind(self) -> str:
        """How the literature calls it."""

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
    """An update whose size the base tells: `size` is [outputs, inputs], and (0, 0) until it is known.

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

    @property
    def of_conv1d(self) -> bool:
        """Whether PEFT trains it for maps that are stored as [inputs, outputs], too (GPT-2's `Conv1D`)."""
        return True

    def fitted(self, shape: tuple[int, ...], *, either_layout: bool) -> ComputedUpdate | None:
        either = either_layout and self.of_conv1d
        layouts = (self.transposed, not self.transposed) if either else (self.transposed,)
        for transposed in layouts if len(shape) == 2 else ():
            size = (shape[1], shape[0]) if transposed else (shape[0], shape[1])
            if self.takes(*size):
                return replace(self, transposed=transposed, size=size)
        return None

    @abstractmethod
    def takes(self, outputs: int, inputs: int) -> bool:
        """Return whether it can be the update of a map of this size."""

    def values(self, read: Read) -> torch.Tensor:
        update = self.update(read)
        return update.mT if self.transposed else update

    @abstractmethod
    def update(self, read: Read) -> torch.Tensor:
        """Return the update [outputs, inputs] with its scale."""


@dataclass(frozen=True)
class FactoredUpdate(SizedUpdate):
    """An update that is computed as a product B A, of a size that the file tells."""

    @property
    @abstractmethod
    def rank(self) -> int:
        """The rank of B A."""

    def takes(self, outputs: int, inputs: int) -> bool:
        return (outputs, inputs) == self.size

    @abstractmethod
    def pair(self, read: Read) -> tuple[torch.Tensor, torch.Tensor]:
        """Return B [outputs, r], with the scale, and A [r, inputs]."""

    def factors(self, read: Read) -> tuple[torch.Tensor, torch.Tensor]:
        """Return left [m, r] and right [r, n], whose product is the update as it is stored."""
        b, a = self.pair(read)
        return (a.mT.contiguous(), b.mT.contiguous()) if self.transposed else (b, a)

    def update(self, read: Read) -> torch.Tensor:
        b, a = self.pair(read)
        return b @ a


@dataclass(frozen=True)
class Spectrum(SizedUpdate):
    """FourierFT: scale · Re(ifft2(F)), F with the file's values at places drawn by a seed (2405.03003)."""

    scale: float = 1.0
    seed: int = 0

    @property
    def kind(self) -> str:
        return "FourierFT"

    @property
    def settings(self) -> dict[str, float]:
        return {self.entry.name: self.scale, f"{self.entry.name}.random_loc_seed": float(self.seed)}

    def takes(self, outputs: int, inputs: int) -> bool:
        return self.entry.numel <= outputs * inputs

    def spectrum(self, read: Read) -> torch.Tensor:
        """Return F [outputs, inputs]."""
        outputs, inputs = self.size
        values = read(self.entry)
        draw = torch.Generator().manual_seed(self.seed)
        places = torch.randperm(outputs * inputs, generator=draw)[: values.numel()]
        spectrum = torch.zeros(outputs * inputs, dtype=values.dtype)
        spectrum[places] = values.flatten()
        return spectrum.view(outputs, inputs)

    def update(self, read: Read) -> torch.Tensor:
        update: torch.Tensor = torch.fft.ifft2(self.spectrum(read)).real
        return update * self.scale


@dataclass(frozen=True)
class Wavelets(Spectrum):
    """WaveFT: as FourierFT, with the inverse of Haar's wavelet transform, or F itself if not `inverted`."""

    inverted: bool = True

    @property
    def kind(self) -> str:
        return "WaveFT"

    def update(self, read: Read) -> torch.Tensor:
        bands = self.spectrum(read)
        if not self.inverted:
            return bands * self.scale
        outputs, inputs = self.size
        bands = torch.nn.functional.pad(bands, (0, inputs % 2, 0, outputs % 2))
        sums_and_differences = bands.new_tensor([[1.0, 1.0], [1.0, -1.0]]) / math.sqrt(2)
        height, width = bands.shape
        quarters = bands.view(2, height // 2, 2, width // 2)
        # as in PEFT, the quarter at the top right is the one whose rows are differences
        turned = torch.einsum("aibj,bs,at->isjt", quarters, sums_and_differences, sums_and_differences)
        return turned.reshape(height, width)[:outputs, :inputs] * self.scale


@dataclass(frozen=True)
class SharedBlocks(SizedUpdate):
    """MiSS: one block [r, m] is the update of each r inputs in turn, over all n of them (2409.15371).

    A block of fewer than m columns stands for all outputs, one after the other.
    """

    @property
    def kind(self) -> str:
        return "MiSS"

    @property
    def of_conv1d(self) -> bool:
        return False

    def takes(self, outputs: int, inputs: int) -> bool:
        rank, columns = self.entry.shape
        return rank <= inputs and outputs % columns == 0

    def update(self, read: Read) -> torch.Tensor:
        outputs, inputs = self.size
        values = read(self.entry)
        rank, columns = values.shape
        rows = values.T.repeat(outputs // columns, 1)
        return rows.repeat(1, -(-inputs // rank))[:, :inputs]
