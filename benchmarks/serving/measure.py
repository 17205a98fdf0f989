"""Times ways to serve a mixed batch in turns, and scores compressed banks."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

import submerge
from benchmarks.replication import cache as store
from benchmarks.replication.cache import Cache
from benchmarks.replication.heads import predict, score
from benchmarks.replication.methods import Merge
from benchmarks.replication.splits import Split
from benchmarks.replication.suite import Suite
from benchmarks.replication.train import load_heads
from benchmarks.serving.dense import Dense
from submerge.methods.mass import PRESETS

__all__ = ["COMPRESSIONS", "WAYS", "Bench"]

PAPER = {key: value for key, value in PRESETS["paper"].items() if key != "heads"}
WAYS: Mapping[str, Mapping[str, Any]] = {
    "the default": {},
    "two passes": {"passes": "two", "score": "whitened", "routing_layers": "all"},
    "one pass": {"passes": "one", "score": "gaussian"},
    "the paper's preset": PAPER,
}
COMPRESSIONS = ("auto", "ratio:0.0625", "ratio:0.03", "energy:0.5", "energy:0.7", "energy:0.9", "energy:0.99")


class Bench:
    """The specialists of one seed and kind, as the replication bench trained them."""

    def __init__(
        self,
        suite: Suite,
        cache: Cache,
        splits: Mapping[str, Split],
        kind: str,
        seed: int,
        say: Callable[[str], None],
    ) -> None:
        self.suite, self.cache, self.splits, self.say = suite, cache, splits, say
        self.models = [cache.specialist(seed, kind, task) for task in splits]
        if not all(store.read(model) for model in self.models):
            raise SystemExit("run `python -m benchmarks.replication train text-8` first")
        self.heads = load_heads(suite, cache, splits, seed)
        self.kind = kind
        self.place = cache.root / "serving"

    def merged(self, **parameters: Any) -> Path:
        """Return the folder of a MASS merge with these options."""
        recipe = Merge("mass").recipe(self.cache.base, self.models, None, self.kind)
        recipe["models"] = [
            entry | {"name": task} for entry, task in zip(recipe["models"], self.splits, strict=True)
        ]
        recipe["parameters"] = parameters
        out = self.place / ("-".join(str(value) for value in parameters.values()) or "merged")
        settings = submerge.Settings(threads=torch.get_num_threads(), max_memory=16_000_000_000)
        submerge.merge(recipe, out, settings=settings, overwrite=True)
        return out

    def clean(self) -> None:
        """Remove what was merged."""
        shutil.rmtree(self.place, ignore_errors=True)

    def latency(self, size: int, repeats: int) -> dict[str, Any]:
        """Return way -> median seconds of a mixed batch, and storage."""
        folder, domain = self.merged(), self.suite.domain
        batch, names = self._mixed(size)
        plain = domain.load(self.models[0], self.cache.base)
        base = domain.load(self.cache.base, self.cache.base)
        ways: dict[str, Callable[[], Any]] = {"one fine-tuned model": lambda: plain(**batch)}
        routed = {way: submerge.load(folder, features=True, **options) for way, options in WAYS.items()}
        for way, model in routed.items():
            ways[way] = lambda model=model: model(**batch)
        named = routed["two passes"]
        ways["tasks named"] = lambda: named(**batch, task=names)
        paper = routed["the paper's preset"]
        with torch.inference_mode():
            choice = paper.route(**batch)
            chosen = [tuple(choice.names.index(one) for one in some) for some in choice.selected]
        dense = Dense(base, domain.load(folder, self.cache.base), folder)
        ways["the paper's preset, dense"] = lambda: dense(batch, chosen)
        found = {
            way: {"seconds": seconds}
            for way, seconds in _in_turns(ways, repeats, {"the paper's preset, dense": 2}).items()
        }
        error = (dense(batch, chosen) - self._of(paper, batch)).abs().max().item()
        self.say(f"dense and gated differ by at most {error:.1e}")
        sizes = {name: _bytes(path) for name, path in (("base", self.cache.base), ("merged", folder))}
        sizes["bank"] = (folder / "bank.safetensors").stat().st_size
        sizes["experts"] = sum(map(_bytes, self.models))
        return {
            "ways": found,
            "sets of the dense way": len(set(chosen)),
            "greatest difference to dense": error,
            "bytes": sizes,
        }

    @staticmethod
    @torch.inference_mode()
    def _of(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        found: torch.Tensor = model(**batch).last_hidden_state
        return found

    def _mixed(self, size: int) -> tuple[dict[str, torch.Tensor], list[str]]:
        """Return test inputs of all tasks in turns, padded to one length, and their tasks."""
        each = size // len(self.splits)
        parts = []
        for split in self.splits.values():
            items = self.suite.domain.items(split.test[:each], self.cache.base, split.kind)
            parts.append(items.batch(range(each)))
        longest = max(part["input_ids"].shape[1] for part in parts)
        padded = {
            name: torch.stack(
                [torch.nn.functional.pad(part[name], (0, longest - part[name].shape[1])) for part in parts], 1
            ).flatten(0, 1)
            for name in parts[0]
        }
        return padded, list(self.splits) * each

    def compression(self, count: int) -> dict[str, Any]:
        """Return compression -> bytes, and the score with the task named, beside the individual models."""
        domain, found = self.suite.domain, {}
        items = {
            task: domain.items(split.validation[:count], self.cache.base, split.kind)
            for task, split in self.splits.items()
        }

        def scored(name: str, model: Any, **more: Any) -> float:
            told = predict(self.heads[name], domain.features(model, items[name], **more))
            return score(self.splits[name].kind, told, items[name].labels)

        own = {
            task: scored(task, domain.load(model, self.cache.base))
            for task, model in zip(self.splits, self.models, strict=True)
        }
        for compression in COMPRESSIONS:
            folder = self.merged(compression=compression)
            model = submerge.load(folder, features=True)
            ratios = {task: scored(task, model, task=task) / own[task] for task in self.splits}
            bank = (folder / "bank.safetensors").stat().st_size
            found[compression] = {"bank": bank, "mean": statistics.fmean(ratios.values()), "tasks": ratios}
            self.say(f"{compression}: {bank / 1e6:.1f} MB, {found[compression]['mean']:.4f}")
        return found


def _in_turns(
    ways: Mapping[str, Callable[[], Any]], repeats: int, fewer: Mapping[str, int]
) -> dict[str, list[float]]:
    """Return the seconds of each run; the ways take turns, so that a busy machine is busy for all."""
    found: dict[str, list[float]] = {way: [] for way in ways}
    with torch.inference_mode():
        for turn in range(repeats + 1):
            for way, run in ways.items():
                if turn > fewer.get(way, repeats):
                    continue
                started = time.perf_counter()
                run()
                if turn:  # the first warms up
                    found[way].append(time.perf_counter() - started)
    return found


def _bytes(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.glob("*.safetensors") if f.name != "bank.safetensors")
