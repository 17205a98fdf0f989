"""The command by which vLLM serves adapters beside their base, where it would take them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from submerge.store import ADAPTER_CONFIG, ADAPTER_STEM, lenient_json, read_header

__all__ = ["vllm_command"]

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What `--max-lora-rank` can be."""
NO_LORA = ("GPT2", "GPTBigCode", "GPTJ", "GPTNeoX", "Bloom", "Falcon", "MPT", "Dbrx", "Persimmon", "Stablelm")
"""Decoders, by the beginnings of their architectures' names, for which vLLM documents no LoRA."""


def vllm_command(adapters: Mapping[str, Path], config: Mapping[str, Any] | None = None) -> str | None:
    """Return the line by which vLLM serves adapters, folders by name, or None where it would refuse them.

    vLLM takes plain factors of linear maps of a decoder. `config` is the base's configuration; where that is
    not known, it is read from the base's folder, or else the adapters' own `task_type` says what the base is.
    """
    if not all((folder / ADAPTER_CONFIG).is_file() for folder in adapters.values()):
        return None  # a LoRA file of diffusers or kohya
    configs = [json.loads((folder / ADAPTER_CONFIG).read_text("utf-8")) for folder in adapters.values()]
    bases = {own.get("base_model_name_or_path") for own in configs}
    rank = next((r for r in RANKS if r >= max(own["r"] for own in configs)), None)
    if rank is None or len(bases) != 1 or not all(bases) or any(c in name for name in adapters for c in "=,"):
        return None
    base = str(bases.pop())
    if not _is_decoder(
        config or lenient_json(Path(base) / "config.json"), [own.get("task_type") for own in configs]
    ):
        return None
    if not all(_is_plain(own, adapters[name]) for name, own in zip(adapters, configs, strict=True)):
        return None
    base, _, revision = (base, "", "") if Path(base).exists() else base.partition("@")
    revision = revision or str(configs[0].get("revision") or "")
    words = ["vllm", "serve", base, *(["--revision", revision] if revision else [])]
    words += ["--enable-lora", "--max-lora-rank", str(rank)]
    words += ["--max-loras", str(len(adapters))] if len(adapters) > 1 else []
    words += ["--lora-modules", *(f"{name}={folder}" for name, folder in adapters.items())]
    return shlex.join(words)


def _is_decoder(config: Mapping[str, Any], types: list[str | None]) -> bool:
    """Return whether the base generates text without an encoder, and vLLM puts adapters on it."""
    kinds = config.get("architectures") or []
    if not kinds:
        return all(kind == "CAUSAL_LM" for kind in types)
    kind, encodes = str(kinds[0]), bool(config.get("is_encoder_decoder"))
    beside = kind.endswith("ForConditionalGeneration") and isinstance(config.get("text_config"), Mapping)
    return (kind.endswith("ForCausalLM") or beside) and not encodes and not kind.startswith(NO_LORA)


def _is_plain(config: Mapping[str, Any], folder: Path) -> bool:
    """Return whether an adapter holds A and B of linear maps in layers, and nothing else."""
    others = ("modules_to_save", "target_parameters", "use_dora", "fan_in_fan_out", "trainable_token_indices")
    if any(config.get(key) for key in others) or config.get("bias", "none") != "none":
        return False
    entries = read_header(folder / f"{ADAPTER_STEM}.safetensors").entries
    return all(
        name.endswith((".lora_A.weight", ".lora_B.weight")) and len(entry.shape) == 2
        for name, entry in entries.items()
    )
