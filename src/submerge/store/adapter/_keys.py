"""The tensors of an adapter's file, sorted by the module that they adapt, as PEFT names them.

`base_model.model.<module>.lora_A.weight`, `.lora_B.weight`, `.lora_B.bias`, `.lora_embedding_A`,
`.lora_embedding_B`, `.lora_magnitude_vector`, `.token_adapter.trainable_tokens_delta`, and likewise those of
other kinds (`.hada_w1_a`, `.ia3_l`); everything else is a plain parameter. A wrapped module is also called
`<module>.base_layer`; two parameters of one module that are adapted by themselves are wrapped twice, and the
one inside is below `base_layer`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from submerge.errors import Problem, few
from submerge.names import without_training
from submerge.store.adapter._kinds import KINDS, LORA, AdapterKind
from submerge.store.format import TensorEntry

__all__ = ["FactorKeys", "SortedKeys", "sort_keys"]

_ROLES: Mapping[str, str] = {
    "lora_A.weight": "lora_A",
    "lora_B.weight": "lora_B",
    "lora_B.bias": "bias",
    "lora_embedding_A": "embedding_A",
    "lora_embedding_B": "embedding_B",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
    "token_adapter.trainable_tokens_delta": "rows",
    "trainable_tokens_delta": "rows",
}
"""The roles of tensors that are not called by the role itself."""
# where a state dict was saved by other means than PEFT's, keys have the adapter's name, which PEFT leaves out
_STEMS = sorted(
    {name.removesuffix(".weight").removesuffix(".bias") for kind in KINDS.values() for name in kind.tensors}
)
_OWNED = re.compile(
    rf"\.(?:{'|'.join(map(re.escape, _STEMS))})"
    r"(?P<name>\.(?!(?:weight|bias)$)[^.]+)(?=\.(?:weight|bias)$|$)"
)
# how names of tensors begin that only adapters have
_LIKE = re.compile(
    r"(?:^|\.)(?:lora|hada|lokr|ia3|oft|boft|hra|p?vera|fourierft|miss|randlora|vblora|unilora|delora|gralora|c3a"
    r"|shira|supertuning|waveft|hira|glora|road|beft)_"
)
_INERT = re.compile(r"\.lora_(?:velora_embed$|monteclora_sampler(?:\.|$))")
# with bias="all", and of embeddings that were resized, PEFT also saves what is inside its wrappers of
# modules_to_save: the same values under the wrapper's name, and the ones from before the training
_WRAPPER = re.compile(r"\.(?:modules_to_save|original_module)(?=\..*(?:bias|weight)$)")
_NAMED = re.compile(r"\.modules_to_save\.[^.]+")
# PEFT's prefix, also where the model was wrapped, or was an adapted one already
_PREFIX = re.compile(r"^(?:(?:module|pretrained_model)\.)*(?:base_model\.model\.)+")
# what Tinker calls an output head
_UNEMBED = re.compile(r"^(?:model\.)?unembed_tokens(?=\.)")
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


def sort_keys(entries: Mapping[str, TensorEntry], where: str, kind: AdapterKind = LORA) -> SortedKeys:
    """Return the tensors, given by PEFT's keys, by module and role.

    Keys that only adapters have, and none of this kind, are problems.
    """
    by_role = SortedKeys()
    unknown: list[str] = []
    named = _by_path(entries, where, by_role.problems)
    for name, entry in named.items():
        module, role = _split(name, kind)
        if role is not None:
            _add_factor(by_role, module, role, entry, where)
        elif _WRAPPER.search(name):
            if not named.keys() & {_WRAPPER.sub("", name), _NAMED.sub("", name)}:
                unknown.append(entry.name)
        elif _LIKE.search(name) or ".modules_to_save." in name:
            if not _INERT.search(name):
                unknown.append(entry.name)
        elif f".{_BASE}." in name:
            by_role.wrapped[_unwrapped(name)] = entry
        else:
            by_role.plain[name] = entry
    other = next((one for one in KINDS.values() if all(_split(_path(key), one)[1] for key in unknown)), None)
    if unknown and other is not None and other is not kind:
        what = f"holds tensors of {other.name} ({few(unknown)}), and its configuration says {kind.name}"
        hint = "give both as PEFT saved them: the peft_type, or the file, is of another adapter"
        by_role.problems.append(Problem(what, where, hint))
    elif unknown:
        what = f"holds tensors that are not known of {kind.name} ({few(unknown)})"
        hint = "save the adapter with PEFT's save_pretrained; a variant of it must be merged by PEFT"
        by_role.problems.append(Problem(what, where, hint))
    return by_role


def _by_path(
    entries: Mapping[str, TensorEntry], where: str, problems: list[Problem]
) -> dict[str, TensorEntry]:
    """Return the tensors by the names that PEFT gives them, without its prefix.

    They say neither how the model was wrapped in training, nor which of its adapters they are of.
    """
    paths = {key: _path(key) for key in entries}
    adapters = {match["name"] for path in paths.values() if (match := _OWNED.search(path))}
    if len(adapters) > 1:
        what = f"holds several adapters ({few(sorted(adapter[1:] for adapter in adapters))})"
        problems.append(Problem(what, where, "save each by itself, with PEFT's save_pretrained"))
        return {}
    named: dict[str, TensorEntry] = {}
    for key, name in _without_adapter(paths, *adapters).items() if adapters else paths.items():
        if name in named:
            what = f"holds {named[name].name} and {entries[key].name}, which are one tensor"
            problems.append(Problem(what, where, "keep one of them"))
        named[name] = entries[key]
    return named


def _path(key: str) -> str:
    return _UNEMBED.sub("lm_head", _PREFIX.sub("", without_training(key)))


def _without_adapter(paths: Mapping[str, str], adapter: str) -> dict[str, str]:
    """Return the names without the adapter's, and none of modules as they were before the training."""
    own = f".modules_to_save{adapter}."
    before = {path.replace(own, ".original_module.") for path in paths.values() if own in path}
    return {
        key: _OWNED.sub(lambda match: match[0].removesuffix(adapter), path).replace(own, ".")
        for key, path in paths.items()
        if path not in before
    }


def _split(name: str, kind: AdapterKind) -> tuple[str, str | None]:
    """Return a tensor's module and its role there; the role is None for parameters."""
    for tensor in kind.tensors:
        if name.endswith(f".{tensor}") and len(name) > len(tensor) + 1:
            return name.removesuffix(f".{tensor}"), _ROLES.get(tensor, tensor)
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
