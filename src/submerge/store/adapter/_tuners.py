"""From what PEFT's kinds beside LoRA save of a module to what that does to its parameters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from submerge.errors import Problem, RequestError
from submerge.store.adapter._composed import Composed
from submerge.store.adapter._computed import SharedBlocks, Spectrum, Wavelets
from submerge.store.adapter._config import AdapterConfig
from submerge.store.adapter._dense_updates import dense_updates
from submerge.store.adapter._factor_tuners import FACTOR_KINDS
from submerge.store.adapter._module_tensors import Builder, Entries, Parts, UnfitError, matrix, shared_tensor
from submerge.store.adapter._parts import LowRankPart, Replace, SharedFactors
from submerge.store.adapter._structured_tuners import STRUCTURED_KINDS
from submerge.store.adapter._transformed import Butterfly, Reflections, Rotations, Scaled
from submerge.store.adapter._unsupported import MERGE_FIRST
from submerge.store.format import TensorEntry

__all__ = ["shared_tensors", "tuner_parts"]

_EPSILON = 1e-5  # which PEFT adds to the rank of AdaLoRA
_SERIES_SINCE = (0, 18)


def tuner_parts(module: str, entries: Entries, config: AdapterConfig, shared: Entries) -> Parts | str:
    """Return the parts of a module's parameters, by the last word of their names, or why there are none.

    `entries` are its tensors by PEFT's names, and `shared` those of all modules. A module whose rank was cut
    to 0 (AdaLoRA) has no part. Raises `RequestError` for settings that cannot be honoured.
    """
    try:
        return _BUILDERS[config.kind.name](module, entries, config, shared)
    except UnfitError as error:
        return str(error)


def shared_tensors(entries: Entries, config: AdapterConfig) -> tuple[dict[str, TensorEntry], Entries]:
    """Return the tensors that all modules have in common, by name, and the others.

    Raises `RequestError` where some are not in the file.
    """
    names = config.kind.shared
    if not names:
        return {}, entries
    pattern = re.compile(rf"(?:.*\.)?(?P<name>{'|'.join(names)})(?:\.[^.]+)?")
    found = {key: match["name"] for key in entries if (match := pattern.fullmatch(key))}
    if set(found.values()) != set(names):
        what = f"holds no {' and '.join(names)}, which were not saved with it (save_projection)"
        raise RequestError(Problem(what, config.where, MERGE_FIRST))
    if config.kind.name == "Uni-LoRA" and len(entries) == len(found):
        what = "does not hold which values each module has, which were not saved with it (save_indices)"
        raise RequestError(Problem(what, config.where, MERGE_FIRST))
    shared = {name: entries[key] for key, name in found.items()}
    return shared, {key: entry for key, entry in entries.items() if key not in found}


def _adalora(module: str, entries: Entries, config: AdapterConfig, shared: Entries) -> Parts:
    a, b, e = (entries.get(f"lora_{letter}") for letter in "ABE")
    if a is None or b is None or e is None:
        raise UnfitError("lacks one of lora_A, lora_B and lora_E")
    rank = a.shape[0] if len(a.shape) == 2 else -1
    if (
        len(b.shape) != 2
        or b.shape[1] != rank
        or e.shape not in ((rank, 1), (rank,))
        or 0 in (a.shape[1], b.shape[0])
    ):
        raise UnfitError(f"has factors that do not fit each other, A {a.shape}, B {b.shape} and E {e.shape}")
    if rank == 0:
        return {}
    numerator = config.alpha if config.alpha > 0 else float(config.rank)
    return {
        "weight": LowRankPart(
            left_entry=b,
            right_entry=a,
            scale=numerator / (config.rank + _EPSILON),  # the rank that it began with, whatever is left of it
            transposed=config.transposed,
            between=e,
        )
    }


def _lycoris(module: str, entries: Entries, config: AdapterConfig, shared: Entries) -> Parts:
    part = dense_updates(entries).get("weight")
    if not isinstance(part, Composed):
        raise UnfitError(f"has matrices that do not fit each other ({', '.join(sorted(entries))})")
    rank = config.rank_of(module)
    if part.rank not in (None, rank):
        raise UnfitError(f"has rank {part.rank}, but the configuration says {rank}")
    whole = part.second.whole
    by_axes = whole is not None and len(whole.shape) == 3
    return {"weight": replace(part, scale=config.scale_of(module, rank), by_axes=by_axes)}


def _ia3(module: str, entries: Entries, config: AdapterConfig, shared: Entries) -> Parts:
    entry = entries["ia3_l"]
    if len(entry.shape) < 2 or 0 in entry.shape or max(entry.shape) != entry.numel:
        raise UnfitError(f"has ia3_l of the shape {list(entry.shape)}")
    listed = config.raw.get("feedforward_modules") or []
    try:
        by_input = (
            re.fullmatch(listed, module) is not None
            if isinstance(listed, str)
            else any(module.endswith(str(name)) for name in listed)
        )
    except (re.error, TypeError):
        raise UnfitError(f"is not named by feedforward_modules, {listed!r}") from None
    if len(entry.shape) == 2 and entry.numel > 1 and by_input != (entry.shape[0] == 1):
        raise UnfitError(f"has ia3_l {list(entry.shape)}, but feedforward_modules says otherwise")
    return {"weight": Scaled(entry, by_input, config.transposed)}


def _oft(module: str, entries: Entries, config: AdapterConfig, shared: Entries) -> Parts:
    of_embedding = "oft_embedding_R.weight" in entries
    entry = matrix(entries, "oft_embedding_R.weight" if of_embedding else "oft_R.weight")
    settings = config.settings
    limit = float(settings["eps"]) if settings["coft"] else None
    terms = int(settings["num_cayley_neumann_terms"]) if settings["use_cayley_neumann"] else None
    if terms is not None and _version(config.raw) < _SERIES_SINCE:
        what = "rotates by the series that PEFT had before version 0.18 (use_cayley_neumann)"
        hint = "merge it with PEFT 0.17 (merge_and_unload) and give the checkpoint"
        raise RequestError(Problem(what, config.where, hint))
    part = Rotations(entry, terms, bool(settings["block_share"]), limit, of_embedding)
    if not part.is_whole:
        raise UnfitError(f"has no whole blocks, {list(entry.shape)}")
    return {"weight": part}


def _version(raw: Mapping[str, Any]) -> tuple[int, ...]:
    match = re.match(r"(\d+)\.(\d+)", str(raw.get("peft_version") or ""))
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _boft(module: str, entries: Entries, config: AdapterConfig, shared: Entries) -> Parts:
    entry, scales = matrix(entries, "boft_R", 4), matrix(entries, "boft_s")
    if entry.shape[2] != entry.shape[3]:
        raise UnfitError(f"has boft_R of the shape {list(entry.shape)}")
    return {"weight": Butterfly(entry, scales)}


def _hra(module: str, entries: Entries, config: AdapterConfig, shared: Entries) -> Parts:
    return {"weight": Reflections(matrix(entries, "hra_u"), bool(config.settings["apply_GS"]))}


def _vera(module: str, entries: Entries, config: AdapterConfig, shared: Entries) -> Parts:
    name = config.kind.name.lower()
    a, b = shared_tensor(shared, f"{name}_A", config), shared_tensor(shared, f"{name}_B", config)
    outside, between = matrix(entries, f"{name}_lambda_b", 1), matrix(entries, f"{name}_lambda_d", 1)
    halves, rank = (2 if name == "pvera" else 1), between.numel
    if a.shape[0] != rank or b.shape[1] * halves != rank or b.shape[0] < outside.numel:
        raise UnfitError(
            f"has vectors of {outside.numel} and {rank} values, {name}_A is {a.shape}, {name}_B {b.shape}"
        )
    part = SharedFactors(
        b,
        a,
        scale=1.0,
        transposed=config.transposed,
        settled=False,
        between=between,
        outside=outside,
        size=(outside.numel, a.shape[1]),
    )
    return {"weight": part}


def _fourierft(module: str, entries: Entries, config: AdapterConfig, shared: Entries) -> Parts:
    entry, settings = matrix(entries, "fourierft_spectrum", 1), config.settings
    scale, seed = float(settings["scaling"]), int(settings["random_loc_seed"])
    return {"weight": Spectrum(entry, config.transposed, scale=scale, seed=seed)}


def _waveft(module: str, entries: Entries, config: AdapterConfig, shared: Entries) -> Parts:
    entry, settings = matrix(entries, "waveft_spectrum", 1), config.settings
    family = config.raw.get("wavelet_family") or "db1"
    if settings["use_idwt"] and family != "db1":
        raise RequestError(Problem(f"has wavelets that are not known ({family})", config.where, MERGE_FIRST))
    scale, seed = float(settings["scaling"]), int(settings["random_loc_seed"])
    inverted = bool(settings["use_idwt"])
    return {"weight": Wavelets(entry, config.transposed, scale=scale, seed=seed, inverted=inverted)}


def _miss(module: str, entries: Entries, config: AdapterConfig, shared: Entries) -> Parts:
    if config.raw.get("init_weights") == "bat":
        what = "multiplies blocks of the base's weights (MiSS with init_weights 'bat')"
        raise RequestError(Problem(what, config.where, MERGE_FIRST))
    return {"weight": SharedBlocks(matrix(entries, "miss_block"))}


def _values(module: str, entries: Entries, config: AdapterConfig, shared: Entries) -> Parts:
    return {name.rpartition(".")[2]: Replace(entry) for name, entry in entries.items()}


_BUILDERS: Mapping[str, Builder] = {
    "AdaLoRA": _adalora,
    "LoHa": _lycoris,
    "LoKr": _lycoris,
    "(IA)³": _ia3,
    "OFT": _oft,
    "BOFT": _boft,
    "HRA": _hra,
    "VeRA": _vera,
    "PVeRA": _vera,
    "FourierFT": _fourierft,
    "WaveFT": _waveft,
    "MiSS": _miss,
    "LN tuning": _values,
    **FACTOR_KINDS,
    **STRUCTURED_KINDS,
}
