"""Updates by blocks: GraLoRA's low-rank ones, C3A's circulant ones, and factors of BD-LoRA on a diagonal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from submerge.deferred import torch
from submerge.store.adapter._computed import FactoredUpdate, Read, SizedUpdate
from submerge.store.format import TensorEntry

__all__ = ["Circulants", "DiagonalBlocks", "LowRankBlocks", "diagonal_blocks"]


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


@dataclass(frozen=True, kw_only=True)
class DiagonalBlocks(FactoredUpdate):
    """BD-LoRA: scale · B A, of which one has blocks on its diagonal, and nothing beside them.

    `entry` is B [outputs, r] and `right` A [r, inputs]. Of one of them, A with `of_right`, the file has the
    `blocks` one below the other, without the zeros.
    """

    right: TensorEntry
    blocks: int
    of_right: bool
    scale: float = 1.0

    @property
    def kind(self) -> str:
        return "BD-LoRA"

    @property
    def rank(self) -> int:
        return self.right.shape[0]

    @property
    def factor_entries(self) -> tuple[TensorEntry, ...]:
        return (self.entry, self.right)

    @property
    def settings(self) -> dict[str, float]:
        return {self.entry.name: self.scale}

    def pair(self, read: Read) -> tuple[torch.Tensor, torch.Tensor]:
        b, a = read(self.entry), read(self.right)
        b, a = (b, self._on_diagonal(a)) if self.of_right else (self._on_diagonal(b), a)
        return b * self.scale, a

    def _on_diagonal(self, stacked: torch.Tensor) -> torch.Tensor:
        """Return the blocks [k · i, j] that stand one below the other as a matrix [k · i, k · j]."""
        blocks = stacked.view(self.blocks, -1, stacked.shape[1])
        own = torch.eye(self.blocks, dtype=stacked.dtype)
        return torch.einsum("kij,kl->kilj", blocks, own).reshape(len(stacked), -1)


def diagonal_blocks(
    module: str, left: TensorEntry, right: TensorEntry, config: Mapping[str, Any], *, scale: float
) -> DiagonalBlocks | str | None:
    """Return the update of a module by BD-LoRA's configuration: None for plain factors, or what is wrong."""
    blocks = config.get("nblocks", 1)
    named = [config.get(f"target_modules_bd_{letter}") or () for letter in "ab"]
    sides = [any(str(name) in module for name in names) for names in named]
    if not any(sides):
        return None
    if all(sides) or type(blocks) is not int or blocks < 1:
        return f"is of BD-LoRA in a form that is not known (nblocks {blocks!r})"
    of_right = sides[0]
    own = right if of_right else left
    shapes = (left.shape, right.shape)
    if any(len(shape) != 2 for shape in shapes) or own.shape[0] % blocks:
        return f"has factors that do not fit {blocks} blocks, B {left.shape} and A {right.shape}"
    outputs, rank = left.shape
    rank, inputs = (rank, right.shape[1] * blocks) if of_right else (rank * blocks, right.shape[1])
    if rank != right.shape[0]:
        return f"has factors that do not fit {blocks} blocks, B {left.shape} and A {right.shape}"
    return DiagonalBlocks(
        left, False, (outputs, inputs), right=right, blocks=blocks, of_right=of_right, scale=scale
    )
