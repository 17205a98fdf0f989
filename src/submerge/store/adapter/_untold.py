"""What a configuration says of modules that the file holds nothing of."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from submerge.errors import few
from submerge.names import layer_of
from submerge.store.adapter._computed import ComputedUpdate
from submerge.store.adapter._config import AdapterConfig, matches
from submerge.store.adapter._parts import Add, LowRankPart, Part, Replace, Rows
from submerge.store.adapter._transformed import Transformed

__all__ = ["lacking_parts", "untold_fields"]

_CHOICES = ("exclude_modules", "layers_to_transform")
"""Fields that say which of the modules of a name were trained."""


def lacking_parts(config: Mapping[str, Any], parts: Mapping[str, Part], base: Iterable[str]) -> list[str]:
    """Return which trained modules of a base have no part in the file, in words.

    A name that `target_modules`, `modules_to_save` or `target_parameters` lists counts where the base has
    parameters of that name and no part of the adapter is of any of them. PEFT tells such keys in a warning
    while it loads, and goes on with what the modules had before the training. An adapter that was trained
    with tied weights has one update for both of them, one with `target_parameters` those of experts there.
    """
    names = list(base)
    if config.get("target_parameters"):
        names = [name for name in names if ".experts." not in name]
    factors = [name for name, part in parts.items() if not isinstance(part, Replace | Rows)]
    whole = [name for name, part in parts.items() if isinstance(part, Replace | Rows)]
    tied = {"lm_head"} if config.get("ensure_weight_tying") else set()
    lists = (("target_modules", factors), ("modules_to_save", whole), ("target_parameters", factors))
    messages = []
    for field, held in lists:
        if field == "target_modules" and any(map(config.get, _CHOICES)):
            continue
        listed = [name for name in _names(config.get(field)) if name not in tied]
        lacking = [name for name in listed if _has(names, name) and not _has([*held, *whole], name)]
        if lacking:
            what = f"{field} in its configuration names {few(lacking)}, of which the file holds nothing"
            messages.append(f"{what}: the base's values stay there; was it saved in full?")
    return messages


def untold_fields(config: AdapterConfig, parts: Mapping[str, Part]) -> list[str]:
    """Return what a configuration says that the file does not bear out, in words.

    PEFT tells most of it in warnings while it loads an adapter, or passes over it.
    """
    messages = _idle_patterns(config, parts) + _untrained_modules(config, parts)
    if config.raw.get("lora_bias") and not any(isinstance(part, Add) for part in parts.values()):
        messages.append("lora_bias in its configuration is set, and the file holds no bias of B")
    if config.tokens and not any(isinstance(part, Rows) for part in parts.values()):
        messages.append("trainable_token_indices in its configuration names rows that the file does not hold")
    if config.unknown:
        what = f"its configuration sets {few(config.unknown)}, of which it is not known what it does"
        messages.append(f"{what}: it is passed over; if it changes what the factors mean, merge with PEFT")
    return messages


def _idle_patterns(config: AdapterConfig, parts: Mapping[str, Part]) -> list[str]:
    """Return which patterns of ranks and scales match none of the adapter's modules, in words."""
    kinds = LowRankPart | ComputedUpdate | Transformed
    names = [name for name, part in parts.items() if isinstance(part, kinds)]
    names += [name.rpartition(".")[0] for name in names]
    messages = []
    for field, patterns in (("rank_pattern", config.rank_pattern), ("alpha_pattern", config.alpha_pattern)):
        idle = [pattern for pattern in patterns if not any(matches(pattern, name) for name in names)]
        if idle:
            what = f"{field} in its configuration names {few(idle)}, which no module of it is called by"
            messages.append(f"{what}: its modules have the r and the {config.kind.alpha} of the other fields")
    return messages


def _untrained_modules(config: AdapterConfig, parts: Mapping[str, Part]) -> list[str]:
    """Return which modules the file holds though the configuration leaves them out, in words."""
    modules = [
        name.rpartition(".")[0] for name, part in parts.items() if not isinstance(part, Replace | Rows)
    ]
    excluded = [module for module in modules if _is_excluded(module, config.raw.get("exclude_modules"))]
    layers = config.raw.get("layers_to_transform")
    layers = [layers] if isinstance(layers, int) else layers
    beyond = []
    if isinstance(layers, list) and layers and not config.raw.get("layers_pattern"):
        beyond = [module for module in modules if (at := layer_of(module)) and at[1] not in layers]
    return [
        f"{field} in its configuration leaves out {few(sorted(set(found)))}, of which the file has tensors: "
        "they are merged, and PEFT would pass over them"
        for field, found in (("exclude_modules", excluded), ("layers_to_transform", beyond))
        if found
    ]


def _is_excluded(module: str, listed: object) -> bool:
    """Return whether a list of names, or a pattern, is of a module."""
    if isinstance(listed, str):
        try:
            return re.fullmatch(listed, module) is not None
        except re.error:
            return False
    return any(module == name or module.endswith(f".{name}") for name in _names(listed))


def _names(listed: object) -> list[str]:
    """Return the names of a list; a text is a pattern, which may well match nothing."""
    return [name for name in listed if isinstance(name, str) and name] if isinstance(listed, list) else []


def _has(names: Iterable[str], module: str) -> bool:
    """Return whether one of the names is a parameter of such a module, or that parameter itself."""
    return any(f".{module}." in f".{name}." for name in names)
