"""The observation itself: an adapter's null-space ratio on its own inputs, its scale λ, and its quality.

For adapters saved while they are trained: ω(λ), the ratio in the base with λ times this adapter alone. Only
where it falls with λ can coefficients that make it small be good ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

import submerge
from benchmarks.console import Say, silent
from benchmarks.replication.cache import Result, cached, timed, trained
from benchmarks.replication.nli.model import Prompts, accuracy, load, word_ids
from benchmarks.replication.rows import Rows
from submerge.calibrate import choose_hooks

__all__ = ["ANSWERED", "HOOKS", "LAMBDAS", "observe", "third_quarter", "without_last"]

LAMBDAS = (0.0, 0.25, 0.5, 1.0)
HOOKS: Mapping[str, Callable[[Any, list[str]], list[str]]] = {
    "last_quarter": lambda model, names: choose_hooks(model, names, "last_quarter"),
    "v_proj of the last quarter": lambda model, names: [
        name for name in choose_hooks(model, names, "last_quarter") if name.endswith("v_proj")
    ],
    "all": lambda model, names: names,
    "q_proj of the third quarter": lambda model, names: [
        name for name in choose_hooks(model, names, third_quarter(model)) if name.endswith("q_proj")
    ],
}
"""The modules over which ω is a mean: those that it is measured for here."""
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
            result |= _omegas(base, adapters, Prompts(inputs, base))
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


def _omegas(base: Path, adapters: Mapping[int, Path], items: Prompts) -> Result:
    """Return hooks -> step -> ω at each λ, hooks -> the level without structure, and all by module."""
    names = {str(step): folder for step, folder in adapters.items()}
    batches = [items.batch(which) for which in items.batches()]
    data = {"": batches, ANSWERED: [without_last(batch) for batch in batches]}
    model = load(base, base)

    def ratios(scales: Any) -> Any:
        return submerge.null_space_ratio(model, names, data, hooks=".", scales=scales)

    at_base = ratios(None)
    alone = {
        k: [at_base] + [ratios([scale * (k == j) for j in range(len(names))]) for scale in LAMBDAS[1:]]
        for k in range(len(names))
    }
    values = {
        step: torch.stack([one.values[:, :, k] for one in alone[k]], -1) for k, step in enumerate(names)
    }  # [modules, data, λ]
    result: Result = {"omega": {}, "isotropic": {}, "modules": list(at_base.modules)}
    for j, positions in enumerate(data):
        for hooks, choose in HOOKS.items():
            chosen = set(choose(model, list(at_base.modules)))
            at = torch.tensor([name in chosen for name in at_base.modules])
            name = hooks + positions
            result["omega"][name] = {step: one[at, j].mean(0).tolist() for step, one in values.items()}
            result["isotropic"][name] = at_base.isotropic[at].mean().item()
    return result | {"by_module": {step: one[:, 0].tolist() for step, one in values.items()}}


def without_last(batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a batch whose masks end before each prompt's last position; what is before stays the same."""
    mask = batch["attention_mask"].clone()
    mask[torch.arange(len(mask)), mask.sum(1) - 1] = 0
    return {"input_ids": batch["input_ids"], "attention_mask": mask}
