"""From what PEFT's kinds save whose updates are products of two factors, which are computed, to updates."""

from __future__ import annotations

from collections.abc import Mapping

from submerge.store.adapter._config import AdapterConfig
from submerge.store.adapter._module_tensors import Builder, Entries, Parts, UnfitError, matrix, shared_tensor
from submerge.store.adapter._projected import (
    BankedVectors,
    BankLogits,
    IndexedVector,
    RandomBases,
    ScaledRanks,
)
from submerge.store.format import TensorEntry

__all__ = ["FACTOR_KINDS"]


def _randlora(module: str, entries: Entries, config: AdapterConfig, shared: Entries) -> Parts:
    small = shared_tensor(shared, "randlora_A", config, 3)
    large = shared_tensor(shared, "randlora_B", config, 3)
    diagonal, gamma = matrix(entries, "randlora_lambda"), matrix(entries, "randlora_gamma")
    rank, bases = diagonal.shape
    fits = small.shape[:2] == (rank, 1) and large.shape[2] == rank and gamma.shape[0] == bases
    if not fits or bases > large.shape[1] or gamma.shape[1] > small.shape[2]:
        raise UnfitError(
            f"has tensors {diagonal.shape} and {gamma.shape}, randlora_A is {small.shape}, "
            f"randlora_B {large.shape}"
        )
    scale = float(config.settings["randlora_alpha"]) / rank
    return {
        "weight": RandomBases(diagonal, config.transposed, gamma=gamma, small=small, large=large, scale=scale)
    }


def _vblora(module: str, entries: Entries, config: AdapterConfig, shared: Entries) -> Parts:
    bank = shared_tensor(shared, "vblora_vector_bank", config)
    left, right = (_logits(entries, f"vblora_logits_{letter}", bank, config) for letter in "BA")
    if left.shape[1] != right.shape[0]:
        raise UnfitError(f"has logits of the shapes {left.shape} and {right.shape}")
    length = bank.shape[1]
    size = (left.shape[0] * length, right.shape[1] * length)
    top = int(config.settings["topk"])
    return {"weight": BankedVectors(bank, config.transposed, size, left=left, right=right, top=top)}


def _logits(entries: Entries, name: str, bank: TensorEntry, config: AdapterConfig) -> BankLogits:
    count, top = bank.shape[0], int(config.settings["topk"])
    if not 1 <= top <= count:
        raise UnfitError(f"chooses {top} of {count} vectors")
    if name in entries:
        logits = matrix(entries, name, 3)
        if logits.shape[2] != count:
            raise UnfitError(f"has {name} of the shape {list(logits.shape)}, of {count} vectors")
        return BankLogits(logits)
    places = matrix(entries, f"{name}_topk_indices", 3)
    weights = matrix(entries, f"{name}_topk_weights", 3) if top > 1 else None
    if places.shape[2] != top or (weights and weights.shape != (*places.shape[:2], top - 1)):
        raise UnfitError(f"has {name} of the shape {list(places.shape)}, of {top} vectors each")
    return BankLogits(None, places, weights)


def _unilora(module: str, entries: Entries, config: AdapterConfig, shared: Entries) -> Parts:
    vector = shared_tensor(shared, "unilora_theta_d", config, 1)
    left, right = (
        (matrix(entries, f"unilora_indices_{letter}"), matrix(entries, f"unilora_scales_{letter}"))
        for letter in "BA"
    )
    if left[0].shape[1] != right[0].shape[0] or any(one.shape != other.shape for one, other in (left, right)):
        raise UnfitError(f"has factors that do not fit each other, A {right[0].shape} and B {left[0].shape}")
    size = (left[0].shape[0], right[0].shape[1])
    return {"weight": IndexedVector(vector, config.transposed, size, left=left, right=right)}


def _delora(module: str, entries: Entries, config: AdapterConfig, shared: Entries) -> Parts:
    b, a = matrix(entries, "delora_B"), matrix(entries, "delora_A")
    bound, norms = matrix(entries, "delora_lambda", 1), matrix(entries, "delora_w_norm", 1)
    if b.shape[1] != a.shape[0] or bound.numel != 1 or norms.numel != a.shape[1]:
        raise UnfitError(
            f"has tensors that do not fit each other, A {a.shape}, B {b.shape}, {norms.numel} norms"
        )
    rank = config.rank_of(module)
    if a.shape[0] != rank:
        raise UnfitError(f"has rank {a.shape[0]}, but the configuration says {rank}")
    return {"weight": ScaledRanks(b, False, (b.shape[0], a.shape[1]), right=a, bound=bound, norms=norms)}


FACTOR_KINDS: Mapping[str, Builder] = {
    "RandLoRA": _randlora,
    "VB-LoRA": _vblora,
    "Uni-LoRA": _unilora,
    "DeLoRA": _delora,
}
"""By the name of the kind."""
