"""What the files beside the weights say of a model's inputs and outputs: images, sounds, prompts, pooling."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from submerge.store.format import lenient_json

__all__ = ["MODULES", "input_settings", "module_folders"]

MODULES = "modules.json"
"""The modules of Sentence Transformers, one after another, and the folders of those that have files."""
_KEYS = (
    "do_normalize",
    "image_mean",
    "image_std",
    "do_rescale",
    "rescale_factor",
    "do_resize",
    "size",
    "do_center_crop",
    "crop_size",
    "patch_size",
    "temporal_patch_size",
    "merge_size",
    "feature_size",
    "sampling_rate",
    "n_fft",
    "hop_length",
    "chunk_length",
    "num_mel_bins",
)
"""What processors of images and of sounds say that changes the values that the model is given."""
_WAYS = {
    "cls_token": "cls",
    "max_tokens": "max",
    "mean_tokens": "mean",
    "weightedmean_tokens": "weightedmean",
}
_PROCESSORS = {
    "preprocessor_config.json": "",
    "image_preprocessor_config.json": "",
    "video_preprocessor_config.json": "video_",
}
_PARTS = {"image_processor": "", "feature_extractor": "", "video_processor": "video_"}
"""The same in `processor_config.json`, as transformers 5 writes them."""


def input_settings(folder: Path, config: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return by name what the files of a folder say of inputs and outputs, in one form for all versions.

    Processors of transformers, the modules of Sentence Transformers, timm's `pretrained_cfg` (a part of
    `config`) and OpenCLIP's `preprocess_cfg` are looked at. What a broken file would say is left out.
    """
    told: dict[str, Any] = {}
    for file, prefix in _PROCESSORS.items():
        told |= _processor(lenient_json(folder / file), prefix)
    processor = lenient_json(folder / "processor_config.json")
    for key, prefix in _PARTS.items():
        told |= _processor(processor.get(key), prefix)
    told |= _of_pixels((config or {}).get("pretrained_cfg"))
    told |= _of_pixels(lenient_json(folder / "open_clip_config.json").get("preprocess_cfg"))
    return told | dict(_sentences(folder))


def module_folders(folder: Path) -> tuple[str, ...]:
    """Return the subfolders that the modules of Sentence Transformers have, in their order."""
    return tuple(path for _, path in _modules(folder) if path)


def _processor(table: Any, prefix: str) -> dict[str, Any]:
    if not isinstance(table, Mapping):
        return {}
    told = {key: _plain(table[key]) for key in _KEYS if table.get(key) is not None}
    for size, switch in (("size", "do_resize"), ("crop_size", "do_center_crop")):
        if told.get(switch) is False:
            told.pop(size, None)
    return {prefix + key: value for key, value in told.items()}


def _plain(value: Any) -> Any:
    """Return a value so that older and newer spellings are equal: of a size its numbers, each once."""
    if isinstance(value, Mapping):
        numbers = {n for n in value.values() if isinstance(n, int | float)}
        return sorted(numbers)[0] if len(numbers) == 1 else sorted(numbers)
    if isinstance(value, list):
        return _plain(dict(enumerate(value))) if len(set(map(str, value))) == 1 else value
    return value


def _of_pixels(table: Any) -> dict[str, Any]:
    if not isinstance(table, Mapping):
        return {}
    found = {"image_mean": table.get("mean"), "image_std": table.get("std")}
    return {key: _plain(value) for key, value in found.items() if value is not None}


def _modules(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the class and the folder of each module."""
    try:
        listed = json.loads((folder / MODULES).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return
    for module in listed if isinstance(listed, list) else ():
        if isinstance(module, Mapping) and isinstance(module.get("type"), str):
            place = module.get("path")
            yield module["type"].rpartition(".")[2], place if isinstance(place, str) else ""


def _sentences(folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield what Sentence Transformers does with a model's states: modules, pooling, prompts."""
    modules = list(_modules(folder))
    if modules:
        yield MODULES, [kind for kind, _ in modules]
    for kind, place in modules:
        if kind == "Pooling":
            yield "pooling", _pooling(lenient_json(folder / place / "config.json"))
    prompts = lenient_json(folder / "config_sentence_transformers.json").get("prompts")
    if isinstance(prompts, Mapping) and any(prompts.values()):
        yield "prompts", {key: text for key, text in prompts.items() if text}
    lowers = lenient_json(folder / "sentence_bert_config.json").get("do_lower_case")
    if isinstance(lowers, bool):
        yield "do_lower_case", lowers


def _pooling(table: Mapping[str, Any]) -> list[str]:
    """Return how states are pooled, in the words of version 6; before it each way had a switch."""
    told = table.get("pooling_mode")
    if told is not None:
        return sorted([told] if isinstance(told, str) else map(str, told))
    ways = [key.removeprefix("pooling_mode_") for key, on in table.items() if on is True and "_mode_" in key]
    return sorted(_WAYS.get(way, way) for way in ways) or ["mean"]
