"""Times ways to serve a mixed batch in turns, and scores compressed banks."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

import submerge
from benchmarks.console import Say
from benchmarks.replication.encoder import Items
from benchmarks.replication.heads import predict, score
from benchmarks.replication.rows import Rows
from benchmarks.replication.specialists import Specialists
from benchmarks.serving.dense import ModelPerSet
from submerge.methods.mass import PRESETS

__all__ = ["CHOICES", "COMPRESSIONS", "WAYS", "ServingBench"]

PAPER = {key: value for key, value in PRESETS["paper"].items() if key != "heads"}
WAYS: Mapping[str, Mapping[str, Any]] = {
    "the default": {},
    "two passes": {"passes": "two", "score": "whitened", "routing_layers": "all"},
    "one pass": {"passes": "one", "score": "gaussian"},
    "the paper's preset": PAPER,
}
CHOICES: Mapping[str, Mapping[str, Any]] = {
    "the paper's preset": PAPER,
    "three tasks each": PAPER | {"threshold": 0.0},
}
"""What makes sets of tasks; the dense way merges a model for each of them."""
SIZES = (8, 16, 32, 64)
COMPRESSIONS = ("auto", "ratio:0.0625", "ratio:0.03", "energy:0.5", "energy:0.7", "energy:0.9", "energy:0.99")


class ServingBench:
    """The specialists of one seed and kind, as the replication bench trained them, served by MASS."""

    def __init__(self, specialists: Specialists, say: Say) -> None:
        self.specialists, self.say = specialists, say
        self.domain, self.splits = specialists.domain, specialists.splits
        self.place = specialists.cache.root / "serving"

    def merged(self, **parameters: Any) -> Path:
        """Return the folder of a MASS merge with these options."""
        out = self.place / ("-".join(str(value) for value in parameters.values()) or "merged")
        return self.specialists.merge_mass(out, torch.get_num_threads(), parameters)

    @cached_property
    def served(self) -> Path:
        """The folder of the merge with default options."""
        return self.merged()

    def clean(self) -> None:
        """Remove what was merged."""
        shutil.rmtree(self.place, ignore_errors=True)

    def latency(self, size: int, repeats: int) -> dict[str, Any]:
        """Return way -> median seconds of a mixed batch, and storage."""
        folder, load = self.served, self.specialists.load
        batch, names = self._mixed(size)
        plain, base = load(self.specialists.models[0]), self.specialists.base()
        ways: dict[str, Callable[[], Any]] = {"one fine-tuned model": lambda: plain(**batch)}
        routed = {way: submerge.load(folder, features=True, **options) for way, options in WAYS.items()}
        for way, model in routed.items():
            ways[way] = lambda model=model: model(**batch)
        named = routed["two passes"]
        ways["tasks named"] = lambda: named(**batch, task=names)
        paper = routed["the paper's preset"]
        with torch.inference_mode():
            choice = paper.route(**batch)
            chosen = _numbers(choice)
        dense = ModelPerSet(base, load(folder), folder)
        ways["the paper's preset, dense"] = lambda: dense(batch, chosen)
        times = _in_turns(ways, repeats, {"the paper's preset, dense": 2})
        error = (dense(batch, chosen) - self._hidden(paper, batch)).abs().max().item()
        self.say(f"dense and gated differ by at most {error:.1e}")
        sizes = {"base": _bytes(self.specialists.cache.base), "merged": _bytes(folder)}
        sizes["bank"] = (folder / "bank.safetensors").stat().st_size
        sizes["experts"] = sum(map(_bytes, self.specialists.models))
        return {
            "ways": {way: {"seconds": seconds} for way, seconds in times.items()},
            "sets of the dense way": len(set(chosen)),
            "greatest difference to dense": error,
            "bytes": sizes,
        }

    @torch.inference_mode()
    def sets(self, repeats: int) -> list[dict[str, Any]]:
        """Return for each choice and size of a mixed batch its sets of tasks, and seconds of both ways.

        `first` is the gated layers' time while no set was met before, so that cores are to be found.
        """
        rows = []
        dense = ModelPerSet(self.specialists.base(), self.specialists.load(self.served), self.served)
        everything, _ = self._mixed(max(SIZES))
        for choice, options in CHOICES.items():
            for size in SIZES:
                batch = {name: tensor[:size] for name, tensor in everything.items()}
                model = submerge.load(self.served, features=True, **options)
                chosen = _numbers(model.route(**batch))
                ways = {"gated": partial(model, **batch), "dense": partial(dense, batch, chosen)}
                row = {"choice": choice, "batch": size, "sets": len(set(chosen))}
                row["first"] = _seconds(ways["gated"])
                times = _in_turns(ways, repeats, {"dense": 1})
                row |= {way: statistics.median(seconds) for way, seconds in times.items()}
                rows.append(row)
                self.say(f"{choice}, {size} inputs, {row['sets']} sets: {row['dense'] / row['gated']:.1f}×")
        return rows

    @staticmethod
    @torch.inference_mode()
    def _hidden(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        hidden: torch.Tensor = model(**batch).last_hidden_state
        return hidden

    def _mixed(self, size: int) -> tuple[dict[str, torch.Tensor], list[str]]:
        """Return test inputs of all tasks in turns, padded to one length, and their tasks."""
        each = size // len(self.splits)
        parts = []
        for split in self.splits.values():
            items = self._items(split.test[:each], split.kind)
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
        results = {}
        items = {
            task: self._items(split.validation[:count], split.kind) for task, split in self.splits.items()
        }

        def scored(name: str, model: Any, **more: Any) -> float:
            features = self.domain.features(model, items[name], **more)
            predicted = predict(self.specialists.heads[name], features)
            return score(self.splits[name].kind, predicted, items[name].labels)

        own = {
            task: scored(task, self.specialists.load(folder))
            for task, folder in zip(self.splits, self.specialists.models, strict=True)
        }
        for compression in COMPRESSIONS:
            folder = self.merged(compression=compression)
            model = submerge.load(folder, features=True)
            ratios = {task: scored(task, model, task=task) / own[task] for task in self.splits}
            bank = (folder / "bank.safetensors").stat().st_size
            results[compression] = {
                "bank": bank,
                "mean": statistics.fmean(ratios.values()),
                "tasks": ratios,
            }
            self.say(f"{compression}: {bank / 1e6:.1f} MB, {results[compression]['mean']:.4f}")
        return results

    def _items(self, rows: Rows, kind: str) -> Items:
        return self.domain.items(rows, self.specialists.cache.base, kind)


def _numbers(routing: Any) -> list[tuple[int, ...]]:
    """Return the numbers of each input's tasks."""
    return [tuple(routing.names.index(name) for name in names) for names in routing.selected]


def _in_turns(
    ways: Mapping[str, Callable[[], Any]], repeats: int, fewer: Mapping[str, int]
) -> dict[str, list[float]]:
    """Return the seconds of each run; the ways take turns, so that a busy machine is busy for all."""
    times: dict[str, list[float]] = {way: [] for way in ways}
    with torch.inference_mode():
        for turn in range(repeats + 1):
            for way, run in ways.items():
                if turn > fewer.get(way, repeats):
                    continue
                seconds = _seconds(run)
                if turn:  # the first warms up
                    times[way].append(seconds)
    return times


def _seconds(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _bytes(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.glob("*.safetensors") if f.name != "bank.safetensors")
