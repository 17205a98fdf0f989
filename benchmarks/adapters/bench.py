"""Times whole merges through the command line, and the same methods on single matrices beside plain SVDs."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import safe_open

from benchmarks.adapters import plain
from benchmarks.adapters.models import modules
from benchmarks.process import measure_from_cache, merge_command
from benchmarks.speed.models import BASE, TUNED, Shape, weights_file
from submerge.algebra import Dense, LowRank, Update, factored
from submerge.methods import METHODS, TensorSpec

__all__ = ["ADAPTER_MERGES", "CHECKPOINT_MERGES", "AdapterBench", "TimedMethod"]

MEMORY = "2GB"
TIMES = 9
"""Runs of our own method on one matrix of adapters; the median counts."""


@dataclass(frozen=True)
class TimedMethod:
    """A method with options; `name` is how tables call it."""

    name: str
    method: str
    options: Mapping[str, Any]


ADAPTER_MERGES = tuple(
    TimedMethod(m, m, {}) for m in ("ssam", "tsv_m", "iso_c", "iso_cts", "knots_ties", "cat")
)
CHECKPOINT_MERGES = (
    TimedMethod("tsv_m", "tsv_m", {}),
    TimedMethod("iso_c", "iso_c", {}),
    TimedMethod("ssam, rank 128", "ssam", {"rank": 128}),
    TimedMethod("ssam", "ssam", {}),
)


@dataclass
class AdapterBench:
    """The settings of a benchmark, and its steps."""

    work: Path
    threads: int
    say: Callable[[str], None]

    def merge_process(self, merge: TimedMethod, models: Sequence[Path], base: Path | None) -> dict[str, Any]:
        """Return what `submerge merge` takes for all models, into an adapter where there is no base."""
        self.say(f"{merge.name}: {len(models)} models through the command line")
        recipe: dict[str, Any] = {"merge_method": merge.method}
        if base is not None:
            recipe["base_model"] = str(base.resolve())
        recipe["models"] = [{"model": str(model.resolve())} for model in models]
        if merge.options:
            recipe["parameters"] = dict(merge.options)
        path, out = self.work / "recipe.yaml", self.work / "out"
        path.write_text(yaml.safe_dump(recipe, sort_keys=False))
        form = ["--as", "adapter"] if base is None else []
        options = ["--json", "--quiet", "--max-memory", MEMORY, *form]
        command = merge_command(path, out, self.threads, *options)
        inputs = [f for m in [*models, *([base] if base else [])] for f in m.glob("*.safetensors")]
        log = self.work / "merge.log"
        run = measure_from_cache(command, log, out, inputs)
        report = json.loads(log.read_text()[log.read_text().index("{") :])
        return asdict(run) | {"seconds_inside": report["seconds"], "bytes_written": report["bytes_written"]}

    def adapter_matrices(
        self, shape: Shape, count: int, rank: int, merges: Sequence[TimedMethod]
    ) -> dict[str, Any]:
        """Return, for a square and a tall module, the seconds of each method and of its plain route."""
        results: dict[str, Any] = {}
        known: dict[str, float | None] = {}
        for m, n in dict.fromkeys(modules(shape).values()):
            if m < n or f"{m}x{n}" in results:
                continue
            draw = torch.Generator().manual_seed(0)
            updates: list[Update] = [
                LowRank(
                    0.01 * torch.randn(m, rank, generator=draw), torch.randn(rank, n, generator=draw) / n**0.5
                )
                for _ in range(count)
            ]
            rows = results[f"{m}x{n}"] = {}
            for merge in merges:
                route = plain.routes(m, n, count).get(merge.method)
                if route is None:
                    continue
                self.say(f"{merge.name}: one module of {m}×{n}")
                ours = statistics.median(_timed(merge, updates)[1] for _ in range(TIMES))
                seconds, all_of_it = plain.at_least(route, (m, n), known)
                rows[merge.name] = {
                    "ours": ours,
                    "plain": seconds,
                    "plain_is_whole": all_of_it,
                    "route": dict(route),
                }
        return {"matrices": results, "steps": known}

    def checkpoint_matrices(
        self, shape: Shape, models: Mapping[str, Path], merges: Sequence[TimedMethod]
    ) -> dict[str, Any]:
        """Return the same for the first square and the first tall weight of checkpoints, and the errors."""
        results = {}
        for name in ("model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.up_proj.weight"):
            base, *tuned = (_read(models[model], name) for model in (BASE, *TUNED))
            updates = [one - base for one in tuned]
            m, n = base.shape
            self.say(f"{m}×{n}: {len(updates)} SVDs")
            parts, seconds = plain.svds(updates)
            entry: dict[str, Any] = {"svds": seconds, "spectrum": _spectrum(parts[0][1]), "merges": {}}
            for merge in merges:
                if merge.method == "ssam" and m > n:
                    continue  # m×m decompositions, and the square one shows the same
                self.say(f"{merge.name}: one weight of {m}×{n}")
                update, ours = _timed(merge, [Dense(u) for u in updates])
                reference = plain.MERGES[merge.name](updates, parts)
                off = (update.dense() - reference).norm()
                entry["merges"][merge.name] = {
                    "ours": ours,
                    "error_of_weight": float(off / (base + reference).norm()),
                    "error_of_update": float(off / reference.norm()),
                }
            results[f"{m}x{n}"] = entry
        return results


def _timed(merge: TimedMethod, updates: Sequence[Update]) -> tuple[Update, float]:
    """Return the merged update and its seconds; of adapters, with its factors."""
    method = METHODS[merge.method]
    values = {
        option.name: [option.default] * len(updates) if option.scope == "model" else option.default
        for option in method.options
    } | {name: str(value) for name, value in merge.options.items()}
    spec = TensorSpec("weight", updates[0].shape, len(updates))
    assert method.matrix is not None
    started = time.perf_counter()
    update = method.matrix(updates, spec, values).update
    if isinstance(update, LowRank) and isinstance(updates[0], LowRank):
        update = factored(update).update
    return update, time.perf_counter() - started


def _read(model: Path, name: str) -> torch.Tensor:
    with safe_open(weights_file(model), "pt") as file:
        return file.get_tensor(name).float()


def _spectrum(s: torch.Tensor) -> dict[str, float]:
    """Return how a spectrum falls: singular values relative to the first, and the energy of the first k."""
    k = len(s)
    energy = s.square().cumsum(0) / s.square().sum()
    return {
        "s_2/s_1": float(s[1] / s[0]),
        f"s_{k // 16}/s_1": float(s[k // 16 - 1] / s[0]),
        f"s_{k // 2}/s_1": float(s[k // 2 - 1] / s[0]),
        f"energy of the first {k // 16}": float(energy[k // 16 - 1]),
    }
