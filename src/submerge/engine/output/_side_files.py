"""What lies in a checkpoint's folder beside its weights: copied files, the configuration, an index."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from submerge.engine.output._text_files import copy_file, write_json
from submerge.engine.plan import MergePlan
from submerge.store import dtype_named, index_json, untied

__all__ = ["write_side_files"]

DTYPE_NAMES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}


def write_side_files(plan: MergePlan, folder: Path) -> None:
    """Write all files of a checkpoint but its weights."""
    for source, relative in plan.carried:
        copy_file(source, relative, folder)
    _write_config(plan, folder)
    index = index_json(plan.shards)
    if index is not None:
        stem = plan.shards[0].file.partition("-00001-of-")[0]
        (folder / f"{stem}.safetensors.index.json").write_bytes(index)


def _write_config(plan: MergePlan, folder: Path) -> None:
    """Write config.json where it is another than the reference's, which is copied byte for byte."""
    theirs = plan.inputs.reference_model.config
    if theirs is None:
        return
    dtype = dtype_named(plan.recipe.out_dtype or plan.recipe.dtype or "")
    config = plan.config or theirs
    config = config if dtype is None else _with_dtype(config, DTYPE_NAMES[dtype])
    config = untied(config) if plan.unties else config
    if config != theirs:
        write_json(folder / "config.json", config)


def _with_dtype(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Return the config with its dtype, and that of its parts, set; `torch_dtype` is the older spelling."""
    result = {
        key: dtype
        if key in ("dtype", "torch_dtype") and isinstance(value, str)
        else _with_dtype(value, dtype)
        if isinstance(value, dict) and key.endswith("_config")
        else value
        for key, value in config.items()
    }
    if "architectures" in result and not {"dtype", "torch_dtype"} & set(result):
        result["dtype"] = dtype
    return result
