"""Which fields of an adapter's configuration make it something else than an update of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from submerge.errors import Problem
from submerge.store.adapter._kinds import LORA, AdapterKind

__all__ = ["MERGE_FIRST", "NO_UPDATE", "refusals", "remarks", "unknown_fields", "way_on"]

MERGE_FIRST = "merge it with PEFT (merge_and_unload) and give the checkpoint, or leave it out"
NO_UPDATE = "the adapter is no plain update of the weights: leave it out"
# kinds that PEFT cannot merge: what they add depends on the input, or is put before it
_UNMERGEABLE = frozenset({
    "ADAPTION_PROMPT", "CARTRIDGE", "CPT", "LILY", "MULTITASK_PROMPT_TUNING", "POLY", "PREFIX_TUNING",
    "PROMPT_TUNING", "P_TUNING", "SHADOW", "XLORA",
})  # fmt: skip
# a field that is set → why no update of the weights can be read off the file, and what to do
_REFUSED: Mapping[str, tuple[str, str]] = {
    "layer_replication": ("builds a model with other layers than the base", MERGE_FIRST),
    "alora_invocation_tokens": ("acts only after certain tokens of the input (aLoRA)", NO_UPDATE),
    "arrow_config": ("chooses among adapters for each token (Arrow)", NO_UPDATE),
    "use_qalora": ("acts on averages of a quantised layer's inputs (QALoRA)", NO_UPDATE),
    "kasa_config": ("subtracts a part of the base and scales singular values (KaSA)", MERGE_FIRST),
    "megatron_config": ("is cut over Megatron's parallel layers", "save it as one whole with PEFT first"),
}
_CONVERT = (
    "convert it in PEFT: save_pretrained(..., path_initial_model_for_weight_conversion=<the adapter as it "
    "was before training>); or " + MERGE_FIRST
)
# PEFT subtracts such a start from the base, so the factors are an update of another model than the base
_INIT_MOVED = ("pissa", "olora", "corda", "lora_ga")
_INIT_PLAIN = ("gaussian", "eva", "orthogonal", "mica")
# kinds that versions of PEFT no longer have
_GONE = frozenset({"BONE"})


def way_on(kind: str) -> str:
    """Return what to do with an adapter of a kind that is not read."""
    if kind in _GONE:
        return MERGE_FIRST.replace("PEFT", "the version of PEFT that it was trained with", 1)
    return NO_UPDATE if kind in _UNMERGEABLE else MERGE_FIRST


def refusals(raw: Mapping[str, Any], where: str, kind: AdapterKind = LORA) -> list[Problem]:
    """Return a problem for each field that no merge of weights can honour, with what to do instead."""
    problems = [
        Problem(f"{field} is set: the adapter {why}", where, hint)
        for field, (why, hint) in _REFUSED.items()
        if raw.get(field)
    ]
    problems += _init_problems(raw.get("init_lora_weights", True), where)
    known = kind.known | set(_REFUSED)
    problems += [
        Problem(f"{key} is set: a variant of {kind.name} that is not known", where, MERGE_FIRST)
        for key, value in raw.items()
        if key not in known and value and (key.startswith("use_") or key.endswith("_config"))
    ]
    return problems


def _init_problems(init: Any, where: str) -> list[Problem]:
    if isinstance(init, bool) or init is None:
        return []
    name = str(init).lower()
    if name in _INIT_PLAIN:
        return []
    if name == "loftq":
        what = "init_lora_weights is 'loftq': the adapter is an update of a quantised base, not of the base"
        return [Problem(what, where, MERGE_FIRST)]
    if name.startswith(_INIT_MOVED):
        what = f"init_lora_weights is {init!r}, which took its start out of the base: this is no update of it"
        return [Problem(what, where, _CONVERT)]
    what = f"init_lora_weights is {init!r}, which is not known: it may have changed the base"
    return [Problem(what, where, f"if it left the base as it was, write true there; otherwise {MERGE_FIRST}")]


def remarks(raw: Mapping[str, Any], kind: AdapterKind = LORA) -> tuple[str, ...]:
    """Return what a configuration asks for beyond plain LoRA, in words: a variant, or another kind."""
    init = raw.get("init_lora_weights", True)
    notes = [
        text
        for field, text in (
            ("use_rslora", "rsLoRA"),
            ("use_dora", "DoRA"),
            ("lora_bias", "bias of B"),
            ("use_bdlora", "BD-LoRA"),
            ("monteclora_config", "MonteCLoRA, which draws in training only"),
        )
        if raw.get(field)
    ]
    if isinstance(init, str) and init.lower() != "gaussian":
        notes.append(f"start {init}, which leaves the base as it is")
    if raw.get("velora_config"):
        notes.append("VeLoRA, which changes the training only")
    if raw.get("ensure_weight_tying"):
        notes.append("trained with tied weights")
    if kind is not LORA:
        notes.insert(0, kind.name)
    return tuple(notes)


def unknown_fields(raw: Mapping[str, Any], kind: AdapterKind) -> tuple[str, ...]:
    """Return the fields that are set, and of which it is not known what they do."""
    known = kind.known | set(_REFUSED)
    return tuple(sorted(key for key in raw if key not in known and raw[key]))
