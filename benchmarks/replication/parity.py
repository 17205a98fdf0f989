"""The same merge by those peers that have the method: mergekit for checkpoints, PEFT for adapters."""

from __future__ import annotations

import shutil
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from benchmarks.replication.methods import Merge
from benchmarks.replication.scores import Scorer
from benchmarks.replication.specialists import Specialists

__all__ = ["Peers"]

WEIGHTS = "model.safetensors"


class Peers:
    """The peers' merges of a seed's specialists, scored on the test."""

    def __init__(self, specialists: Specialists, scorer: Scorer, device: str) -> None:
        self.specialists, self.scorer, self.device = specialists, scorer, device

    def merge(self, row: Merge, scale: float | None, part: Path) -> dict[str, Any]:
        """Return peer -> test scores and seconds at the scale chosen for us, or why there are none."""
        results = {}
        kind = self.specialists.kind
        if row.mergekit and kind == "full" and find_spec("mergekit"):
            results["mergekit"] = self._mergekit(row, scale, part)
        if row.peft and kind == "lora" and find_spec("peft"):
            results["peft"] = self._peft(row, scale)
        return results

    def _mergekit(self, row: Merge, scale: float | None, part: Path) -> dict[str, Any]:
        """Merge by mergekit's `merge_state_dicts`: its command does not get through its own table of BERT."""
        from mergekit.merge_methods.api import merge_state_dicts

        states = {model.name: load_file(model / WEIGHTS) for model in self.specialists.models}
        parameters: dict[str, Any] = {
            option: dict.fromkeys(states, value) for option, value in row.each.items()
        } | dict(row.shared)
        if row.factor and scale is not None:
            parameters[row.factor] = scale
        base = {"base": load_file(self.specialists.cache.base / WEIGHTS)} if row.based else {}
        torch.manual_seed(self.specialists.seed)  # of its random masks
        started = time.perf_counter()
        try:
            merged = merge_state_dicts(
                base | states, row.method or row.name, parameters=parameters, base="base" if base else None
            )
        except (TypeError, ValueError, RuntimeError) as failure:
            return {"failed": f"{type(failure).__name__}: {failure}"}
        seconds = time.perf_counter() - started
        out = part / "mergekit"
        shutil.copytree(self.specialists.cache.base, out)
        save_file({key: value.contiguous() for key, value in merged.items()}, out / WEIGHTS, {"format": "pt"})
        scores = self.scorer.scores(self.specialists.load(out, self.device), "test")
        shutil.rmtree(out)
        return {"test": scores, "seconds": round(seconds, 2)}

    def _peft(self, row: Merge, scale: float | None) -> dict[str, Any]:
        """Combine the adapters with PEFT's `add_weighted_adapter`; its weights have the scale."""
        from peft import PeftModel

        base = self.specialists.domain.fresh(self.specialists.cache.base)
        names = [model.name for model in self.specialists.models]
        model = PeftModel.from_pretrained(base, self.specialists.models[0], adapter_name=names[0])
        for name, folder in zip(names[1:], self.specialists.models[1:], strict=True):
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
        scores = self.scorer.scores(model.merge_and_unload().to(self.device).eval(), "test")
        return {"test": scores, "seconds": round(seconds, 2), "combination": row.peft}
