"""The tensors of an adapter's file, sorted by the module that they adapt, as PEFT names them.

`base_model.model.<module>.lora_A.weight`, `.lora_B.weight`, `.lora_B.bias`, `.lora_embedding_A`,
`.lora_embedding_B`, `.lora_magnitude_vector`, `.token_adapter.trainable_tokens_delta`; everything else is
a plain parameter. A wrapped module is also called `<module>.base_layer`; two parameters of one module that
are adapted by themselves are wrapped twice, and the one inside is below `base_layer`.

A state dict that a training program saved by itself has more: the adapter's name (`.lora_A.default.weight`),
and the wrappers of `torch.compile`, FSDP and others. PEFT loads nothing of such a file, and says so in a
warning alone; here they are read for what they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from submerge.errors import Problem, few
from submerge.names import without_training_wrappers
from submerge.store.format import TensorEntry

__all__ = ["FactorKeys", "SortedKeys", "sort_keys"]

_FACTOR = re.compile(r"^(?P<module>.+?)\.(?P<role>lora_[AB])\.weight$")
_ROLES: tuple[tuple[str, str], ...] = (
    (".lora_B.bias", "bias"),
    (".lora_embedding_A", "embedding_A"),
    (".lora_embedding_B", "embedding_B"),
    (".lora_magnitude_vector", "magnitude"),
    (".lora_magnitude_vector.weight", "magnitude"),
    (".token_adapter.trainable_tokens_delta", "rows"),
)
_INERT = re.compile(r"\.lora_velora_embed$")
# with bias="all", and of embeddings that were resized, PEFT also saves what is inside its wrappers of
# modules_to_save: the same values under the wrapper's name, and the ones from before the training
_WRAPPER = re.compile(r"\.(?:modules_to_save|original_module)(?=\..*(?:bias|weight)$)")
_NAMED = re.compile(r"\.modules_to_save\.[^.]+")
_PREFIX = "base_model.model."
_OF_ADAPTER = re.compile(
    r"(?P<role>\.lora_(?:[AB]|embedding_[AB]|magnitude_vector)|\.trainable_tokens_(?:delta|original))"
    r"\.(?P<adapter>(?!(?:weight|bias)$)[^.]+)(?=$|\.(?:weight|bias)$)"
)
_BASE = "base_layer"


@dataclass
class FactorKeys:
    """What the file holds for one wrapper of one module, by role; `depth` counts the wrappers outside it."""

    module: str
    depth: int
    roles: dict[str, TensorEntry] = field(default_factory=dict)


@dataclass
class SortedKeys:
    """All tensors of a file: factors by module and depth, plain parameters, and the wrapped ones' own."""

    factors: dict[tuple[str, int], FactorKeys] = field(default_factory=dict)
    plain: dict[str, TensorEntry] = field(default_factory=dict)
    wrapped: dict[str, TensorEntry] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def sort_keys(entries: Mapping[str, TensorEntry], where: str) -> SortedKeys:
    """Return the tensors, given by PEFT's keys, by module and role; keys that no LoRA has are problems."""
    by_role = SortedKeys()
    unknown: list[str] = []
    names = _names(entries)
    stripped = set(names.values())
    for key, entry in entries.items():
        name = names[key]
        module, role = _split(name)
        if role is not None:
            _add_factor(by_role, module, role, entry, where)
        elif _WRAPPER.search(name):
            if not stripped & {_WRAPPER.sub("", name), _NAMED.sub("", name)}:
                unknown.append(entry.name)
        elif ".lora_" in name or name.startswith("lora_") or ".modules_to_save." in name:
            if not _INERT.search(name):
                unknown.append(entry.name)
        elif f".{_BASE}." in name:
            by_role.wrapped[_unwrapped(name)] = entry
        else:
            by_role.plain[name] = entry
    if unknown:
        what = f"holds tensors that are not known of LoRA ({few(unknown)})"
        hint = "save the adapter with PEFT's save_pretrained; a variant of LoRA must be merged by PEFT"
        by_role.problems.append(Problem(what, where, hint))
    return by_role


def _names(keys: Iterable[str]) -> dict[str, str]:
    """Return for each key its name in the model: without PEFT's prefix, wrappers and the adapter's name."""
    names = {key: without_training_wrappers(key) for key in keys}
    adapters = {match["adapter"] for name in names.values() for match in _OF_ADAPTER.finditer(name)}
    for key, name in names.items():
        while name.startswith(_PREFIX):
            name = name.removeprefix(_PREFIX)
        names[key] = name
    if len(adapters) == 1:
        unnamed = {key: _OF_ADAPTER.sub(r"\g<role>", name) for key, name in names.items()}
        return unnamed if len(set(unnamed.values())) == len(unnamed) else names
    return names


def _split(name: str) -> tuple[str, str | None]:
    if match := _FACTOR.match(name):
        return match["module"], match["role"]
    for suffix, role in _ROLES:
        if name.endswith(suffix):
            return name.removesuffix(suffix), role
    return name, None


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != _BASE)


def _add_factor(by_role: SortedKeys, module: str, role: str, entry: TensorEntry, where: str) -> None:
    words = module.split(".")
    stop = len(words)
    while stop and words[stop - 1] == _BASE:
        stop -= 1
    key = (_unwrapped(module), len(words) - stop)
    factors = by_role.factors.setdefault(key, FactorKeys(*key))
    if role in factors.roles:
        by_role.problems.append(Problem(f"holds two tensors for {role} of {key[0]}", where))
    factors.roles[role] = entry
    if _BASE in words[:stop]:  # one adapted module in another: torch's MultiheadAttention
        what = f"adapts {key[0]} inside an adapted module, where PEFT applies the update twice"
        by_role.problems.append(Problem(what, where, "merge it with PEFT (merge_and_unload)"))
