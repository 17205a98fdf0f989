"""From what PEFT's kinds save whose updates have another structure: blocks, few entries, products with W."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from submerge.errors import Problem, RequestError
from submerge.store.adapter._blocks import Circulants, LowRankBlocks
from submerge.store.adapter._config import AdapterConfig
from submerge.store.adapter._entrywise import EntryFactor, EntryMap, Hadamard
from submerge.store.adapter._mixed_rows import TurnedPairs
from submerge.store.adapter._module_tensors import Builder, Entries, Parts, UnfitError, matrix
from submerge.store.adapter._parts import Add
from submerge.store.adapter._sparse import Scattered
from submerge.store.adapter._unsupported import MERGE_FIRST

__all__ = ["STRUCTURED_KINDS"]

_PER_PAIR = {"road_1": 1, "road_2": 2, "road_4": 4}


def _gralora(module: str, entries: Entries, config: AdapterConfig, shared: Entries) -> Parts:
    b, a = matrix(entries, "gralora_B", 3), matrix(entries, "gralora_A", 3)
    blocks, rank, _ = b.shape
    if a.shape[0] != blocks or a.shape[2] != rank or rank % blocks:
        raise UnfitError(f"has blocks that do not fit each other, A {a.shape} and B {b.shape}")
    general, more = None, 0
    if "gralora_A_general.weight" in entries or "gralora_B_general.weight" in entries:
        left, right = (matrix(entries, f"gralora_{letter}_general.weight") for letter in "BA")
        general, more = (left, right), right.shape[0]
        size = (blocks * b.shape[2], blocks * a.shape[1])
        if (left.shape[0], right.shape[1]) != size or left.shape[1] != more:
            raise UnfitError(
                f"has factors of the whole that do not fit it, A {right.shape} and B {left.shape}"
            )
    scale = float(config.settings["alpha"]) / (rank + more)
    return {"weight": LowRankBlocks(b, config.transposed, right=a, scale=scale, general=general)}


def _c3a(module: str, entries: Entries, config: AdapterConfig, shared: Entries) -> Parts:
    return {"weight": Circulants(matrix(entries, "c3a_kernel", 3))}


def _shira(module: str, entries: Entries, config: AdapterConfig, shared: Entries) -> Parts:
    values, places = matrix(entries, "shira_weight", 1), matrix(entries, "shira_indices")
    if places.shape != (2, values.numel):
        raise UnfitError(f"has {values.numel} values, and places {list(places.shape)}")
    rank = config.raw.get("r", 32)
    if type(rank) is not int or rank < 1:
        raise UnfitError(f"has the rank {rank!r} where a whole number ≥ 1 is expected")
    return {"weight": Scattered(values, places=places, rank=rank)}


def _supertuning(module: str, entries: Entries, config: AdapterConfig, shared: Entries) -> Parts:
    if "supertuning_indices" not in entries:
        what = (
            "does not hold the places of its values, which were not saved with it (save_precomputed_indices)"
        )
        raise RequestError(Problem(what, config.where, MERGE_FIRST))
    values, places = matrix(entries, "supertuning_values", 1), matrix(entries, "supertuning_indices", 1)
    if values.shape != places.shape:
        raise UnfitError(f"has {values.numel} values, and {places.numel} places")
    part = Scattered(values, places=places)
    if "supertuning_lora_A.weight" in entries or "supertuning_lora_B.weight" in entries:
        left, right = (matrix(entries, f"supertuning_lora_{letter}.weight") for letter in "BA")
        if left.shape[1] != right.shape[0]:
            raise UnfitError(f"has factors that do not fit each other, A {right.shape} and B {left.shape}")
        scale = float(config.settings["lora_alpha"]) / right.shape[0]
        part = replace(part, low_rank=(left, right, scale))
    return {"weight": part}


def _hira(module: str, entries: Entries, config: AdapterConfig, shared: Entries) -> Parts:
    of_embedding = "hira_embedding_A" in entries
    b, a = (entries.get(f"hira_{'embedding_' if of_embedding else ''}{letter}") for letter in "BA")
    if a is None or b is None or len(entries) > 2:
        raise UnfitError("lacks one of hira_A and hira_B")
    if min(len(a.shape), len(b.shape)) < 2 or b.shape[1] != a.shape[0] or set(b.shape[2:]) > {1}:
        raise UnfitError(f"has factors that do not fit each other, A {a.shape} and B {b.shape}")
    # there is no scale that a rank counts in, and PEFT may pass over rank_pattern
    return {"weight": Hadamard(b, a, of_embedding or config.transposed)}


def _glora(module: str, entries: Entries, config: AdapterConfig, shared: Entries) -> Parts:
    if any(name.startswith("glora_C.X") for name in entries):
        what = "adds products of the base's weights to biases (config_C)"
        raise RequestError(Problem(what, config.where, MERGE_FIRST))
    factors = {letter: _entry_factor(entries, f"glora_{letter}") for letter in "ABDE"}
    parts: Parts = {}
    for leaf, factor, addend in (
        ("weight", factors["A"], factors["B"]),
        ("bias", factors["D"], factors["E"]),
    ):
        first = next((one for one in (factor, addend) if one is not None), None)
        if first is not None:
            parts[leaf] = EntryMap(first.first, factor, addend)
    return parts


def _entry_factor(entries: Entries, name: str) -> EntryFactor | None:
    """Return a matrix that changes entries; None for zeros."""
    if (values := entries.get(f"{name}.X")) is not None:
        return EntryFactor(values)
    if f"{name}.Xd" not in entries and f"{name}.Xu" not in entries:
        return None
    first, second = matrix(entries, f"{name}.Xd"), matrix(entries, f"{name}.Xu")
    if first.shape[1] != second.shape[0]:
        raise UnfitError(f"has {name} of {list(first.shape)} and {list(second.shape)}")
    return EntryFactor(first, second)


def _road(module: str, entries: Entries, config: AdapterConfig, shared: Entries) -> Parts:
    angles, scales = matrix(entries, "road_theta", 1), matrix(entries, "road_alpha", 1)
    group, variant = int(config.settings["group_size"]), config.raw.get("variant") or "road_1"
    if variant not in _PER_PAIR or group < 2 or group % 2:
        what = f"has the variant {variant!r} and group_size {group}, which are not known of RoAd"
        raise RequestError(Problem(what, config.where, MERGE_FIRST))
    if angles.shape != scales.shape:
        raise UnfitError(f"has {angles.numel} angles and {scales.numel} scales")
    return {"weight": TurnedPairs(angles, scales, group, _PER_PAIR[variant])}


def _beft(module: str, entries: Entries, config: AdapterConfig, shared: Entries) -> Parts:
    entry = entries["beft_bias"]
    if entry.shape not in ((1, entry.numel), (entry.numel,)):
        raise UnfitError(f"has beft_bias of the shape {list(entry.shape)}")
    return {"bias": Add(replace(entry, shape=(entry.numel,)), 1.0)}


STRUCTURED_KINDS: Mapping[str, Builder] = {
    "GraLoRA": _gralora,
    "C3A": _c3a,
    "SHiRA": _shira,
    "Super-Tuning": _supertuning,
    "HiRA": _hira,
    "GLoRA": _glora,
    "RoAd": _road,
    "BEFT": _beft,
}
"""By the name of the kind."""
