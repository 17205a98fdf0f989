"""`adapter_config.json` of an adapter in portable form: one rank, alpha = r, no patterns, full paths."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from submerge.errors import writing
from submerge.store.adapter._config import ADAPTER_CONFIG
from submerge.store.adapter._layout import LoraModule
from submerge.store.format import sync_file

__all__ = ["portable_config", "write_config"]

_CLASSIFIERS = ("classifier", "score")
_HEADS: Mapping[str, tuple[str, ...]] = {
    "SEQ_CLS": _CLASSIFIERS,
    "TOKEN_CLS": _CLASSIFIERS,
    "QUESTION_ANS": ("qa_outputs",),
}
"""What PEFT saves besides for a type of task, whatever `modules_to_save` names."""


def portable_config(
    updates: Mapping[str, LoraModule],
    saved: Collection[str],
    rows: Mapping[str, Sequence[int]],
    *,
    rank: int,
    base: str | None,
    revision: str | None,
    task_type: str | None,
    ties: bool = False,
) -> dict[str, object]:
    """Return PEFT's configuration of low-rank updates, and of parameters or rows whose new values are saved.

    With `ties` those of embeddings are those of a head, too, that is tied to them.
    """
    modules = {name: update for name, update in updates.items() if update.kind != "parameter"}
    transposed = [update.transposed for update in modules.values() if update.kind == "linear"]
    bare = sorted(set(updates) - set(modules))
    saved_modules = _outermost({name.rpartition(".")[0] for name in saved}, _HEADS.get(task_type or "", ()))
    return {
        "alpha_pattern": {},
        "auto_mapping": None,
        "base_model_name_or_path": base,
        "bias": "none",
        **({"ensure_weight_tying": True} if ties else {}),
        "fan_in_fan_out": bool(transposed) and all(transposed) and len(modules) == len(updates),
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": None,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "modules_to_save": saved_modules or None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": {},
        "revision": revision,
        "target_modules": sorted(name.removesuffix(".weight") for name in modules),
        **({"target_parameters": bare} if bare else {}),
        "task_type": task_type,
        **({"trainable_token_indices": _by_module(rows)} if rows else {}),
        "use_dora": False,
        "use_rslora": False,
    }


def _by_module(rows: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
    return {name.removesuffix(".weight"): list(own) for name, own in sorted(rows.items())}


def _outermost(modules: Collection[str], heads: Collection[str]) -> list[str]:
    """Return the modules to save, of which PEFT allows none inside of another one.

    A head that it adds to them by itself, for the type of the task, stands for all modules in it.
    """
    named = {_head_around(module, heads) for module in modules}
    return sorted(one for one in named if not any(one.startswith(f"{other}.") for other in named))


def _head_around(module: str, heads: Collection[str]) -> str:
    parts = module.split(".")
    depths = (depth for depth, part in enumerate(parts, 1) if part in heads)
    return ".".join(parts[: next(depths, len(parts))])


def write_config(folder: Path, config: Mapping[str, object]) -> None:
    """Write a configuration into a folder, down to the disk; raise `WorkError` if that fails."""
    path = folder / ADAPTER_CONFIG
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    with writing(f"{path}: writing failed", "free some space, or choose a folder that you may write to"):
        path.write_text(text, "utf-8")
    sync_file(path)
