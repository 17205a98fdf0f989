"""The same merge by those peers that carry the method: mergekit for checkpoints, PEFT for adapters."""

from __future__ import annotations

import shutil
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.replication.encoder import load
from benchmarks.replication.methods import Merge
from benchmarks.speed.measure import FailedRunError, measure

if TYPE_CHECKING:
    from benchmarks.replication.merge import Bench

__all__ = ["rows"]


def rows(row: Merge, bench: Bench, scale: float | None, part: Path) -> dict[str, Any]:
    """Return peer -> test scores and seconds at the scale that was chosen for us, or why there are none."""
    found = {}
    if row.mergekit and bench.kind == "full" and find_spec("mergekit"):
        found["mergekit"] = _mergekit(bench, part)
    if row.peft and bench.kind == "lora" and find_spec("peft"):
        found["peft"] = _peft(row, bench, scale)
    return found


def _mergekit(bench: Bench, part: Path) -> dict[str, Any]:
    """Run `mergekit-yaml` on the very recipe that lies beside the result."""
    out = part / "mergekit"
    program = str(Path(sys.executable).with_name("mergekit-yaml"))
    command = [program, str(part / "recipe.yaml"), str(out), "--no-write-model-card"]
    try:
        run = measure(command, part / "mergekit.log")
        scores = bench.scorer.scores(load(out, bench.cache.base, bench.plan.device), "test")
    except (FailedRunError, OSError, ValueError) as failure:
        return {"failed": str(failure).strip().splitlines()[-1].replace(str(part), "…")}
    finally:
        shutil.rmtree(out, ignore_errors=True)
    return {"test": scores, "seconds": round(run.seconds, 2), "peak_bytes": run.peak_bytes}


def _peft(row: Merge, bench: Bench, scale: float | None) -> dict[str, Any]:
    """Combine the adapters with PEFT's `add_weighted_adapter`; its weights carry the scale."""
    from peft import PeftModel
    from transformers import AutoModel

    base = AutoModel.from_pretrained(bench.cache.base)
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
