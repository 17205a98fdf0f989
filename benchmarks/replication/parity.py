"""The same merge by those peers that carry the method: mergekit for checkpoints, PEFT for adapters."""

from __future__ import annotations

import shutil
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from benchmarks.replication.methods import Merge

if TYPE_CHECKING:
    from benchmarks.replication.merge import Bench

__all__ = ["rows"]

WEIGHTS = "model.safetensors"


def rows(row: Merge, bench: Bench, scale: float | None, part: Path) -> dict[str, Any]:
    """Return peer -> test scores and seconds at the scale that was chosen for us, or why there are none."""
    found = {}
    if row.mergekit and bench.kind == "full" and find_spec("mergekit"):
        found["mergekit"] = _mergekit(row, bench, scale, part)
    if row.peft and bench.kind == "lora" and find_spec("peft"):
        found["peft"] = _peft(row, bench, scale)
    return found


def _mergekit(row: Merge, bench: Bench, scale: float | None, part: Path) -> dict[str, Any]:
    """Merge by mergekit's `merge_state_dicts`: its command does not get through its own table of BERT."""
    from mergekit.merge_methods.api import merge_state_dicts

    states = {model.name: load_file(model / WEIGHTS) for model in bench.models}
    parameters: dict[str, Any] = {
        option: dict.fromkeys(states, value) for option, value in row.each.items()
    } | dict(row.shared)
    if row.factor and scale is not None:
        parameters[row.factor] = scale
    base = {"base": load_file(bench.cache.base / WEIGHTS)} if row.based else {}
    torch.manual_seed(bench.seed)  # of its random masks
    started = time.perf_counter()
    try:
        merged = merge_state_dicts(
            base | states, row.method or row.name, parameters=parameters, base="base" if base else None
        )
    except (TypeError, ValueError, RuntimeError) as failure:
        return {"failed": f"{type(failure).__name__}: {failure}"}
    seconds = time.perf_counter() - started
    out = part / "mergekit"
    shutil.copytree(bench.cache.base, out)
    save_file({key: value.contiguous() for key, value in merged.items()}, out / WEIGHTS, {"format": "pt"})
    scores = bench.scorer.scores(bench.suite.domain.load(out, bench.cache.base, bench.plan.device), "test")
    shutil.rmtree(out)
    return {"test": scores, "seconds": round(seconds, 2)}


def _peft(row: Merge, bench: Bench, scale: float | None) -> dict[str, Any]:
    """Combine the adapters with PEFT's `add_weighted_adapter`; its weights carry the scale."""
    from peft import PeftModel

    base = bench.suite.domain.fresh(bench.cache.base)
    names = [model.name for model in bench.models]
    model = PeftModel.from_pretrained(base, bench.models[0], adapter_name=names[0])
    for name, folder in zip(names[1:], bench.models[1:], strict=True):
        model.load_adapter(folder, adapter_name=name)
    options = {"density": row.each["density"]} if "density" in row.each else {}
    started = time.perf_counter()
    try:
        weights = [1.0 if scale is None else scale] * len(names)
        model.add_weighted_adapter(names, weights, "merged", combination_type=row.peft, **options)
    except (ValueError, NotImplementedError) as failure:
        return {"failed": str(failure)}
    seconds = time.perf_counter() - started
    model.set_adapter("merged")
    scores = bench.scorer.scores(model.merge_and_unload().to(bench.plan.device).eval(), "test")
    return {"test": scores, "seconds": round(seconds, 2), "combination": row.peft}
