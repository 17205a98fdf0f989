"""Which updates an adapter can hold, and how."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from submerge.engine.plan._inputs import Inputs
from submerge.engine.plan._tables import is_matrix
from submerge.engine.plan._tensor import Module, TensorPlan
from submerge.errors import Problem, few
from submerge.store import ADAPTER_STEM, LORA_STEM, Adapter, Checkpoint, LoraKeys, LowRank

__all__ = ["adapter_file", "adapter_form", "adapter_warnings", "lora_keys", "stores_transposed"]

_QUANTISED = re.compile(r"[-_.](?:unsloth|bnb|[48]bit|gptq|awq|gguf|fp8|int[48]|nf4|hf)(?=$|[-_.])")
_CACHED = re.compile(r"models--(?P<owner>[^/]+)--(?P<name>[^/]+)/snapshots/")


def adapter_form(tensors: Sequence[TensorPlan], inputs: Inputs) -> tuple[list[TensorPlan], list[Problem]]:
    """Return the tensors that an adapter holds or leaves out, and problems.

    A matrix, and whatever an adapter has factors of, becomes factors. What an adapter replaces (a head,
    `modules_to_save`) is saved whole, if it is all parameters of its module. Others have no place.
    """
    transposed = stores_transposed(inputs.reference_model)
    whole = _whole(inputs)
    held: list[TensorPlan] = []
    packed: list[str] = []
    for tensor in tensors:
        if tensor.action == "take_base":  # named in a warning, and neither read nor written
            held.append(replace(tensor, inputs=()))
        if tensor.action != "merge" or all(i.relative and not i.patch for i in tensor.inputs):
            continue
        parts = [
            a.parts.get(tensor.name)
            for i in tensor.inputs
            if (a := inputs.models[i.model].adapter) is not None
        ]
        factors = [part for part in parts if isinstance(part, LowRank)]
        if any(part.experts and part.expert is None for part in factors):
            packed.append(tensor.name)
        elif tensor.name in whole:
            held.append(tensor)
        elif factors:
            held.append(replace(tensor, module=_module(factors[0])))
        elif is_matrix(tensor.name, tensor.shape, inputs.reference_model.config):
            held.append(replace(tensor, module=Module(transposed=transposed)))
        else:
            held.append(replace(tensor, action="skip", matrix=False, why="an adapter has no place for it"))
    # updates that need no values of the base are merged without reading it
    held = [replace(t, origin=None) if t.module and all(i.relative for i in t.inputs) else t for t in held]
    problems = []
    if packed:
        hint = "write a checkpoint (output: {as: checkpoint})"
        what = f"the portable form of an adapter has no place for packed experts: {few(packed)}"
        problems.append(Problem(what, "output", hint))
    if not any(tensor.action == "merge" for tensor in held) and not problems:
        problems.append(
            Problem("no model changes a matrix: there is nothing for an adapter to hold", "output")
        )
    return held, problems


def _module(part: LowRank) -> Module:
    return Module(part.kind, part.transposed and part.kind != "embedding", part.kernel)


def _whole(inputs: Inputs) -> set[str]:
    """Return the tensors that adapters replace, of modules of which they replace all."""
    replaced = {name for model in inputs.models if model.adapter for name in model.adapter.whole}
    others = {name.rpartition(".")[0] for name in inputs.reference_model.tensors.keys() - replaced}
    return {name for name in replaced if name.rpartition(".")[0] not in others}


def lora_keys(tensors: Sequence[TensorPlan], models: Sequence[Checkpoint]) -> dict[str, LoraKeys] | None:
    """Return the keys of a LoRA file like those that come in, or None where PEFT's form is written.

    Each parameter has the keys of the first file that has it.
    """
    keys: dict[str, LoraKeys] = {}
    for model in reversed(models):
        if model.adapter is None or model.adapter.form == "peft":
            continue
        for name, part in model.adapter.parts.items():
            if isinstance(part, LowRank):
                alpha = part.alpha.name if part.alpha else None
                keys[name] = LoraKeys(part.right_entry.name, part.left_entry.name, alpha)
    held = {tensor.name for tensor in tensors if tensor.action == "merge"}
    return keys if held <= keys.keys() else None


def adapter_file(tensors: Sequence[TensorPlan], models: Sequence[Checkpoint]) -> str:
    """Return the name of the file that the merged updates go into."""
    return f"{ADAPTER_STEM if lora_keys(tensors, models) is None else LORA_STEM}.safetensors"


def adapter_warnings(models: Sequence[Checkpoint]) -> list[str]:
    """Return what of the adapters is not merged, and whether they say that they are of different models."""
    adapters = [model.adapter for model in models if model.adapter is not None]
    found = [f"{adapter.label}: {what}" for adapter in adapters for what in adapter.left_out]
    named = {_base_name(adapter.base): adapter for adapter in adapters if adapter.base}
    kinds: dict[bool, list[Adapter]] = {}
    for (is_path, _), adapter in named.items():
        kinds.setdefault(is_path, []).append(adapter)
    for group in kinds.values():  # a folder and a Hub id may well be one model
        if len(group) > 1:
            told = few([f"{adapter.label} on {adapter.base}" for adapter in group])
            found.append(f"the adapters were trained on different models, as their files say: {told}")
    return list(dict.fromkeys(found))


def _base_name(base: str) -> tuple[bool, str]:
    """Return whether a base is named by a path, and what names of the same model have in common.

    Owners (copies on the Hub), upper case and the words for quantised copies make no other model.
    """
    if match := _CACHED.search(base):
        base = f"{match['owner']}/{match['name']}"
    is_path = base.startswith(("/", ".", "~")) or base.count("/") != 1
    name = base.rstrip("/").rpartition("/")[2].lower()
    return is_path, _QUANTISED.sub("", name).removeprefix("meta-")


def stores_transposed(base: Checkpoint) -> bool:
    """Return whether the base keeps its linear maps as [in, out], as GPT-2 does; their biases tell."""
    votes = 0
    for name, entry in base.tensors.items():
        bias = base.tensors.get(f"{name.removesuffix('.weight')}.bias")
        if bias is not None and len(entry.shape) == 2 and entry.shape[0] != entry.shape[1]:
            votes += (bias.shape == entry.shape[1:]) - (bias.shape == entry.shape[:1])
    return votes > 0
