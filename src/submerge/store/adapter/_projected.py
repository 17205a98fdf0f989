"""Updates by factors that are computed of what all modules of an adapter have in common, or of norms.

RandLoRA has random bases, VB-LoRA a bank of vectors, Uni-LoRA one vector; DeLoRA scales factors to norms.
"""

from __future__ import annotations

from dataclasses import dataclass

from submerge.deferred import torch
from submerge.store.adapter._computed import FactoredUpdate, Read, SizedUpdate
from submerge.store.adapter._sparse import chosen
from submerge.store.format import TensorEntry

__all__ = ["BankLogits", "BankedVectors", "IndexedVector", "RandomBases", "ScaledRanks"]


@dataclass(frozen=True, kw_only=True)
class RandomBases(SizedUpdate):
    """RandLoRA: the sum of N products of random matrices, with trained diagonals between them (2502.00987).

    `entry` is λ [r, N], `gamma` [N, m] with m the smaller side of the weight; `small` [r, 1, ≥ m] and `large`
    [≥ n, ≥ N, r] are of all modules.
    """

    gamma: TensorEntry
    small: TensorEntry
    large: TensorEntry
    scale: float = 1.0

    @property
    def kind(self) -> str:
        return "RandLoRA"

    @property
    def factor_entries(self) -> tuple[TensorEntry, ...]:
        return (self.entry, self.gamma)

    @property
    def settings(self) -> dict[str, float]:
        return {self.entry.name: self.scale}

    def takes(self, outputs: int, inputs: int) -> bool:
        return min(outputs, inputs) == self.gamma.shape[1] and max(outputs, inputs) <= self.large.shape[0]

    def update(self, read: Read) -> torch.Tensor:
        outputs, inputs = self.size
        lambdas, gamma = read(self.entry), read(self.gamma)
        small = lambdas.unsqueeze(2) * read(self.small)[:, :, : min(self.size)] * gamma
        large = read(self.large)[: max(self.size), : len(gamma)]
        # PEFT pairs what has ranks outside and bases inside with what has bases outside and ranks inside
        a, b = small.flatten(0, 1), large.flatten(1)
        update = b @ a if inputs <= outputs else (b @ a).mT
        return update * self.scale


@dataclass(frozen=True)
class BankLogits:
    """Which vectors of a bank a factor is made of: logits [.., .., h], or the largest k of them.

    The latter are their `places` [.., .., k], and the `weights` [.., .., k − 1] of all but the last one.
    """

    logits: TensorEntry | None = None
    places: TensorEntry | None = None
    weights: TensorEntry | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape without the last dimension."""
        entry = self.logits or self.places
        return entry.shape[:-1] if entry is not None else ()

    def vectors(self, read: Read, bank: torch.Tensor, top: int) -> torch.Tensor:
        """Return vectors [.., .., b]: sums of `top` of the bank's [h, b], by the softmax of their logits."""
        if self.logits is not None:
            largest, places = read(self.logits).topk(top, dim=-1)
            weights = largest.softmax(-1)
        else:
            assert self.places is not None
            places = chosen(self.places, read(self.places).long(), len(bank))
            first = read(self.weights) if self.weights is not None else bank.new_zeros((*self.shape, 0))
            weights = torch.cat([first, 1 - first.sum(-1, keepdim=True)], dim=-1)
        return (weights.unsqueeze(-1) * bank[places]).sum(-2)


@dataclass(frozen=True, kw_only=True)
class BankedVectors(FactoredUpdate):
    """VB-LoRA: factors of sub-vectors, each a weighted sum of vectors of one bank [h, b] (2405.15179).

    `entry` is the bank; `left` has the logits of B [outputs / b, r, h], `right` of A [r, inputs / b, h].
    """

    left: BankLogits
    right: BankLogits
    top: int = 2

    @property
    def kind(self) -> str:
        return "VB-LoRA"

    @property
    def rank(self) -> int:
        return self.right.shape[0]

    @property
    def settings(self) -> dict[str, float]:
        return {f"{self.entry.name}.topk": float(self.top)}

    def pair(self, read: Read) -> tuple[torch.Tensor, torch.Tensor]:
        bank = read(self.entry)
        b = self.left.vectors(read, bank, self.top).transpose(1, 2).reshape(-1, self.rank)
        return b, self.right.vectors(read, bank, self.top).flatten(1)


@dataclass(frozen=True, kw_only=True)
class IndexedVector(FactoredUpdate):
    """Uni-LoRA: all entries of all factors are those of one vector [d], each with a scale (2506.00799).

    `entry` is the vector, `left` the places and scales of B [outputs, r], `right` those of A [r, inputs].
    """

    left: tuple[TensorEntry, TensorEntry]
    right: tuple[TensorEntry, TensorEntry]

    @property
    def kind(self) -> str:
        return "Uni-LoRA"

    @property
    def rank(self) -> int:
        return self.right[0].shape[0]

    def pair(self, read: Read) -> tuple[torch.Tensor, torch.Tensor]:
        vector = read(self.entry)
        b, a = (
            vector[chosen(places, read(places).long(), len(vector))] * read(scales)
            for places, scales in (self.left, self.right)
        )
        return b, a


@dataclass(frozen=True, kw_only=True)
class ScaledRanks(FactoredUpdate):
    """DeLoRA: (λ / r) · B diag(1 / (‖b_i‖ ‖a_i‖)) A diag(‖w_j‖), with the norms of W's columns (2503.18225).

    `entry` is B [outputs, r], `right` A [r, inputs], `bound` λ [1], `norms` [inputs].
    """

    right: TensorEntry
    bound: TensorEntry
    norms: TensorEntry

    @property
    def kind(self) -> str:
        return "DeLoRA"

    @property
    def of_conv1d(self) -> bool:
        return False

    @property
    def rank(self) -> int:
        return self.right.shape[0]

    @property
    def factor_entries(self) -> tuple[TensorEntry, ...]:
        return (self.entry, self.right, self.bound, self.norms)

    def pair(self, read: Read) -> tuple[torch.Tensor, torch.Tensor]:
        b, a = read(self.entry), read(self.right)
        lengths = a.norm(dim=1).clamp(min=1e-4) * b.norm(dim=0).clamp(min=1e-4)
        return b * (read(self.bound) / self.rank / lengths), a * read(self.norms)
