"""What a plan says of adapters: what is not merged, what they were trained on, and what the result needs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from submerge.engine.plan.inputs import Inputs, stored_digest
from submerge.engine.plan.tensors._adapter_form import factors_of, saved_tables
from submerge.engine.plan.tensors._tensor import TensorPlan
from submerge.errors import RequestError, few
from submerge.store import Adapter, Checkpoint, is_adapter, model_digest, open_checkpoint

__all__ = ["adapter_warnings", "expert_warnings", "table_warnings"]

_QUANTISED = re.compile(r"[-_.](?:unsloth|bnb|[48]bit|gptq|awq|gguf|fp8|int[48]|nf4|hf)(?=$|[-_.])")
_EXPERT = re.compile(r"\.experts\.\d+\.")
_CACHED = re.compile(r"models--(?P<owner>[^/]+)--(?P<name>[^/]+)/snapshots/")


def adapter_warnings(models: Sequence[Checkpoint], *, of_one_base: bool = True) -> list[str]:
    """Return what of the adapters is not merged, which change nothing, and which are of different models.

    Those of a composed model are of different models, and not `of_one_base`.
    """
    adapters = [model.adapter for model in models if model.adapter is not None]
    left_out = [f"{adapter.label}: {what}" for adapter in adapters for what in adapter.left_out]
    idle = [f"{adapter.label}: {_idle(adapter)}" for adapter in adapters if adapter.is_idle()]
    chained = [f"{model.label}: {what}" for model in models if (what := _trained_on_adapter(model))]
    moved = [f"{model.label}: {what}" for model in models if (what := _on_another_base(model))]
    bases = _different_bases(adapters) if of_one_base else ()
    return list(dict.fromkeys([*left_out, *idle, *chained, *moved, *bases]))


def _idle(adapter: Adapter) -> str:
    """Return why an adapter changes nothing: by its configuration, or by its factors."""
    if adapter.config.get("lora_alpha") == 0:
        return "lora_alpha is 0 in its configuration: it changes nothing; write the one it was trained with"
    return "all of its updates are zero: it changes nothing; was it saved without what it had learned?"


def _trained_on_adapter(model: Checkpoint) -> str:
    """Return what is to be told of an adapter that was trained on a model with an adapter, or nothing."""
    named = model.adapter.base if model.adapter else None
    if model.under is None or not named or not is_adapter(Path(named)):
        return ""
    what = (
        f"was trained on a model with the adapter {named}, as its file says, and lies on {model.under.label}"
    )
    return f"{what}: is that the model with {named} merged into it?"


def _on_another_base(model: Checkpoint) -> str:
    """Return what is to be told of an adapter whose own base is a folder here, and not what it lies on.

    Paths of the machine that it was trained on say nothing, nor does a base that the recipe names with it.
    """
    if model.adapter is None or model.under is None or model.label != model.adapter.label:
        return ""
    named = Path(model.adapter.base or "")
    if model.adapter.base is None or not (named / "config.json").is_file() or is_adapter(named):
        return ""
    if named.resolve() == model.under.path.resolve() or _is_copy(named, model.under):
        return ""
    return f"was trained on {model.adapter.base}, as its file says, and lies on {model.under.label}"


def _is_copy(named: Path, under: Checkpoint) -> bool:
    """Return whether a folder holds the model that an adapter lies on; also where that is not known."""
    digest = stored_digest(under)
    try:
        return digest is None or model_digest(open_checkpoint(str(named))) == digest
    except RequestError:
        return True


def _different_bases(adapters: Sequence[Adapter]) -> list[str]:
    """Return that adapters name different models as their base, among paths or among Hub ids.

    A path and a Hub id are not compared: they may well be one model.
    """
    by_name = {_base_name(adapter.base): adapter for adapter in adapters if adapter.base}
    warnings = []
    for kind in dict.fromkeys(is_path for is_path, _ in by_name):
        group = [adapter for (is_path, _), adapter in by_name.items() if is_path == kind]
        if len(group) > 1:
            shown = few([f"{adapter.label} on {adapter.base}" for adapter in group])
            warnings.append(f"the adapters were trained on different models, as their files say: {shown}")
    return warnings


def _base_name(base: str) -> tuple[bool, str]:
    """Return whether a base is named by a path, and what names of the same model have in common.

    Owners (copies on the Hub), upper case and the words for quantised copies make no other model.
    """
    if match := _CACHED.search(base):
        base = f"{match['owner']}/{match['name']}"
    is_path = base.startswith(("/", ".", "~")) or base.count("/") != 1
    name = base.rstrip("/").rpartition("/")[2].lower()
    return is_path, _QUANTISED.sub("", name).removeprefix("meta-")


def table_warnings(tensors: Sequence[TensorPlan], models: Sequence[Checkpoint]) -> list[str]:
    """Return of which saved tables it is not known that all adapters were trained on them."""
    without: dict[tuple[str, ...], list[str]] = {}
    for tensor in tensors:
        if tensor.module and tensor.module.table:
            tables = saved_tables(tensor, models)
            labels = tuple(models[member.model].label for member, entry in tables if entry is None)
            without.setdefault(labels, []).append(tensor.name)
    return [
        f"{few(names)}: the adapter has the values that others were trained on and saved; that {few(labels)} "
        "had the same is not known (name the base as base_model, on this disk, and it is looked up)"
        for labels, names in without.items()
        if labels
    ]


def expert_warnings(tensors: Sequence[TensorPlan], inputs: Inputs) -> list[str]:
    """Return that the adapter will have factors of single experts where no adapter had them before."""
    experts = [
        tensor.name
        for tensor in tensors
        if tensor.module and _EXPERT.search(tensor.name) and not factors_of(tensor, inputs)
    ]
    if not experts:
        return []
    what = f"the adapter has factors of single experts ({few(experts)}), as vLLM and transformers 4 take them"
    return [
        f"{what}: with transformers 5 PEFT loads those of Mixtral, of Qwen's mixtures and of their kin alone"
    ]
