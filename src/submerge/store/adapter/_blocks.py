"""Updates by blocks of a weight: GraLoRA's low-rank ones, and C3A's circulant ones."""

from __future__ import annotations

from dataclasses import dataclass

from submerge.deferred import torch
from submerge.store.adapter._computed import Read, SizedUpdate
from submerge.store.format import TensorEntry

__all__ = ["Circulants", "LowRankBlocks"]


@dataclass(frozen=True, kw_only=True)
class LowRankBlocks(SizedUpdate):
    """GraLoRA: k × k blocks, each with a product of rank r / k (2505.20355).

    `entry` is B [k, r, outputs / k], `right` A [k, inputs / k, r]. `general` is B and A of the product of the
    whole weight that is added in the hybrid form.
    """

    right: TensorEntry
    scale: float = 1.0
    general: tuple[TensorEntry, TensorEntry] | None = None

    @property
    def kind(self) -> str:
        return "GraLoRA"

    @property
    def factor_entries(self) -> tuple[TensorEntry, ...]:
        return (self.entry, self.right) if self.general is None else ()

    @property
    def settings(self) -> dict[str, float]:
        return {self.entry.name: self.scale}

    def takes(self, outputs: int, inputs: int) -> bool:
        blocks, _, height = self.entry.shape
        return (outputs, inputs) == (blocks * height, blocks * self.right.shape[1])

    def update(self, read: Read) -> torch.Tensor:
        b, a = read(self.entry), read(self.right)
        blocks, rank, _ = b.shape
        # the block of rows j and columns n has the n-th part of B's ranks in j, the j-th of A's in n
        update = torch.einsum(
            "jnso,nijs->joni",
            b.view(blocks, blocks, rank // blocks, -1),
            a.view(blocks, -1, blocks, rank // blocks),
        ).reshape(self.size)
        if self.general is not None:
            left, right = self.general
            update = update + read(left) @ read(right)
        return update * self.scale


@dataclass(frozen=True)
class Circulants(SizedUpdate):
    """C3A: blocks [b, b] of which each is made of one kernel, divided by the number of inputs (2407.19342).

    `entry` is [outputs / b, inputs / b, b]. Row t and column s of a block have its kernel's value s − t.
    """

    @property
    def kind(self) -> str:
        return "C3A"

    @property
    def of_conv1d(self) -> bool:
        return False

    def takes(self, outputs: int, inputs: int) -> bool:
        rows, columns, block = self.entry.shape
        return (outputs, inputs) == (rows * block, columns * block)

    def update(self, read: Read) -> torch.Tensor:
        steps = torch.arange(self.entry.shape[2])
        blocks = read(self.entry)[:, :, (steps - steps.unsqueeze(1)) % len(steps)]  # [m, n, t, s]
        return blocks.transpose(1, 2).reshape(self.size) / self.size[1]
