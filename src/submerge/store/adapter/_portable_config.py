"""`adapter_config.json` of an adapter in portable form: one rank, alpha = r, no patterns, full paths."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path

from submerge.errors import WorkError
from submerge.store.adapter._config import ADAPTER_CONFIG
from submerge.store.adapter._layout import LoraModule
from submerge.store.format import sync_file

__all__ = ["portable_config", "write_config"]


def portable_config(
    updates: Mapping[str, LoraModule],
    saved: Collection[str],
    *,
    rank: int,
    base: str | None,
    revision: str | None,
    task_type: str | None,
    ties: bool = False,
) -> dict[str, object]:
    """Return PEFT's configuration of low-rank updates, and of parameters whose new values are saved.

    With `ties` those of embeddings are those of a head, too, that is tied to them.
    """
    modules = {name: update for name, update in updates.items() if update.kind != "parameter"}
    transposed = [update.transposed for update in modules.values() if update.kind == "linear"]
    bare = sorted(set(updates) - set(modules))
    saved_modules = sorted({name.rpartition(".")[0] for name in saved})
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
        "use_dora": False,
        "use_rslora": False,
    }


def write_config(folder: Path, config: Mapping[str, object]) -> None:
    """Write a configuration into a folder, down to the disk; raise `WorkError` if that fails."""
    path = folder / ADAPTER_CONFIG
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        hint = "free some space, or choose a folder that you may write to"
        raise WorkError(f"{path}: writing failed ({error.strerror}) — {hint}") from error
    sync_file(path)
