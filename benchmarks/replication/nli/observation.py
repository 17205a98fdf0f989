"""Null-space ratio and accuracy of the adapters of a training, at the hooks that a decoder may have."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.console import Say, silent
from benchmarks.replication.cache import Result, cached, timed, trained
from benchmarks.replication.nli.model import Prompts, accuracy, load, word_ids
from benchmarks.replication.observation import EVERYWHERE, LAMBDAS, Hooks, omegas
from benchmarks.replication.rows import Rows
from submerge.calibrate import choose_hooks

__all__ = ["ANSWERED", "HOOKS", "observe", "third_quarter", "without_last"]

HOOKS: Hooks = {
    "last_quarter": EVERYWHERE["last_quarter"],
    "v_proj of the last quarter": lambda model, names: [
        name for name in choose_hooks(model, names, "last_quarter") if name.endswith("v_proj")
    ],
    "all": EVERYWHERE["all"],
    "q_proj of the third quarter": lambda model, names: [
        name for name in choose_hooks(model, names, third_quarter(model)) if name.endswith("q_proj")
    ],
}
ANSWERED = ", without the position that answers"
"""Of names: as a mean over all positions but the last. What is before it does not depend on it."""


def third_quarter(model: Any) -> str:
    """Return the pattern of the layers before the last quarter, as many again, and one at least."""
    count = model.config.num_hidden_layers
    quarter = max(1, count // 4)
    return rf"layers\.({'|'.join(map(str, range(count - 2 * quarter, count - quarter)))})\."


def observe(
    base: Path,
    task: str,
    adapters: Mapping[int, Path],
    inputs: Rows,
    validation: Rows,
    place: Path,
    say: Say = silent,
) -> Result:
    """Return step -> accuracy, and hooks -> ω(λ), of a training's adapters; from the cache, if it has them.

    `inputs` are measured, and their labels are not read.
    """
    config: dict[str, Any] = {"trained": trained(list(adapters.values())[-1:], task), "steps": list(adapters)}
    config |= {"inputs": len(inputs), "validation": len(validation), "lambdas": list(LAMBDAS)}
    config["hooks"] = [hooks + positions for positions in ("", ANSWERED) for hooks in HOOKS]

    def make(_: Path, result: Result) -> None:
        with timed(result, "seconds_in_all"):
            result |= omegas(load(base, base), adapters, _batches(Prompts(inputs, base)), HOOKS)
            items = Prompts(validation, base)
            models = {0: base} | dict(adapters)
            result["accuracy"] = {
                step: accuracy(load(folder, base), items, word_ids(base, task))
                for step, folder in models.items()
            }
        for hooks in HOOKS:
            last = list(result["omega"][hooks].values())[-1]
            say(f"{task}, {hooks}: ω at λ = 0 … 1: " + ", ".join(f"{value:.5f}" for value in last))

    return cached(place, config, make)


def _batches(items: Prompts) -> dict[str, list[dict[str, torch.Tensor]]]:
    """Return the prompts whole, and without the position that answers."""
    batches = [items.batch(which) for which in items.batches()]
    return {"": batches, ANSWERED: [without_last(batch) for batch in batches]}


def without_last(batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a batch whose masks end before each prompt's last position; what is before stays the same."""
    mask = batch["attention_mask"].clone()
    mask[torch.arange(len(mask)), mask.sum(1) - 1] = 0
    return {"input_ids": batch["input_ids"], "attention_mask": mask}
