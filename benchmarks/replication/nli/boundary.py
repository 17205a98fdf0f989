"""`python -m benchmarks.replication.nli.boundary`: what a merge loses of tasks with two answers.

A sum of adapters can lose a task in two ways: it no longer tells its pairs apart, or it still does and draws
the boundary between the answers elsewhere. For each task of two answers, and for the base, the task's own
adapter and task arithmetic at the scale that the first seed chose, the table says on the test

    accuracy    with the likelier of the two words as the answer
    yes         the share of pairs whose answer is " yes"
    best        accuracy at the boundary between the two logits that is best for these very pairs

so that accuracy is lost to the boundary as far as `best` is above it. It needs the adapters of
`train nli-6`, and the row of `merge nli-6 --methods task_arithmetic`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import submerge
from benchmarks import page
from benchmarks.console import say
from benchmarks.replication import cache as store
from benchmarks.replication.cache import Cache
from benchmarks.replication.jobs import quiet
from benchmarks.replication.methods import rows, write_recipe
from benchmarks.replication.nli.model import Prompts, load, logits, word_ids
from benchmarks.replication.nli.suite import NLI_6
from benchmarks.replication.nli.tasks import LABELS

SUM = "task_arithmetic"
YES = "entailment"
RESULTS = Path(__file__).resolve().parents[2] / "results"


def best_accuracy(margins: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the largest accuracy of labels 0 or 1 by a boundary on margins [N]: 1 where they are above it.

    Examples:
        >>> import torch
        >>> best_accuracy(torch.tensor([-3.0, -2.0, -1.0]), torch.tensor([0, 1, 1]))
        1.0
    """
    boundaries = torch.cat([margins.min()[None] - 1, margins])
    right = (margins > boundaries[:, None]).long() == labels
    return right.double().mean(1).max().item()


@torch.inference_mode()
def measured(model: Any, items: Prompts, answers: list[int], yes: int) -> dict[str, float]:
    """Return accuracy, the share of " yes", and accuracy at the best boundary."""
    scores = items.in_batches(lambda which: logits(model, items.batch(which), answers))
    predicted = scores.argmax(1)
    return {
        "accuracy": (predicted == items.labels).double().mean().item(),
        "yes": (predicted == yes).double().mean().item(),
        "best": best_accuracy(scores[:, 1] - scores[:, 0], items.labels),
    }


def models(cache: Cache, task: str, folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the base, a task's own adapter and the sum of all, which is merged into `folder`."""
    yield "base", cache.base
    yield "its own adapter", NLI_6.adapter(cache, 0, task)
    marker = store.read(cache.result(0, "lora", SUM))
    if marker is None:
        raise SystemExit(f"no row {SUM} in {cache.root}: run `merge nli-6 --seeds 1 --methods {SUM}` first")
    (row,) = (row for row in rows("lora", [SUM], NLI_6.training.rank) if row.name == SUM)
    if not folder.exists():
        adapters = [NLI_6.adapter(cache, 0, one) for one in NLI_6.tasks]
        recipe = row.recipe(cache.base, adapters, marker["scale"], "lora")
        folder.parent.mkdir(parents=True, exist_ok=True)
        submerge.merge(write_recipe(recipe, folder.with_suffix(".yaml")), folder)
    yield f"the sum of all × {marker['scale']}", folder


def main() -> None:
    """Measure every task of two answers, and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cache", type=Path, help="of the suite, as for benchmarks.replication")
    parser.add_argument("--out", type=Path, default=RESULTS, help="default: benchmarks/results")
    options = parser.parse_args()
    quiet(1)
    cache = Cache(options.cache, NLI_6.name) if options.cache else Cache.default(NLI_6.name)
    lines = [
        "| task | answers yes | model | accuracy | yes | at the best boundary |",
        "|---|---:|---|---:|---:|---:|",
    ]
    with TemporaryDirectory() as place:
        for task in (name for name in NLI_6.tasks if len(LABELS[name]) == 2):
            items, yes = Prompts(NLI_6.read([task])[task].test, cache.base), LABELS[task].index(YES)
            share = (items.labels == yes).double().mean().item()
            for name, folder in models(cache, task, Path(place) / "work" / "sum"):
                seen = measured(load(folder, cache.base), items, word_ids(cache.base, task), yes)
                cells = [f"{100 * seen[key]:.1f}" for key in ("accuracy", "yes", "best")]
                lines.append(f"| {task} | {100 * share:.1f} | {name} | {' | '.join(cells)} |")
                say(lines[-1])
    head = page.header("benchmarks.replication.nli.boundary")
    title = "# What a sum of adapters loses of tasks with two answers"
    pairs = f"the first seed, {NLI_6.test} test pairs a task, in %."
    about = f"Made by `{head['command']}` on {head['date']}; {pairs}"
    (options.out / "nli-boundary.md").write_text("\n".join([title, "", about, "", *lines, ""]))


if __name__ == "__main__":
    main()
