"""Trains a LoRA adapter of each task, and saves it on the way, too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from benchmarks.console import Say, silent
from benchmarks.replication import cache as store
from benchmarks.replication.cache import Result, cached, timed
from benchmarks.replication.loop import linear, minimise, paced, tenths
from benchmarks.replication.nli.model import Prompts, load, logits, word_ids
from benchmarks.replication.observation import at_step
from benchmarks.replication.rows import seed_of
from benchmarks.replication.splits import Split
from benchmarks.replication.suite import Training

__all__ = ["like_lengths", "train"]

TARGETS = ["q_proj", "v_proj"]
BUCKET = 16
"""Batches that are drawn together, and share out their items by length."""
EVERY = 25
"""Steps between two lines of a training."""


def train(
    base: Path,
    split: Split,
    folder: Path,
    training: Training,
    seed: int,
    saved: Sequence[int] = (),
    facts: Result | None = None,
    say: Say = silent,
) -> Result:
    """Train one adapter unless the folder has it, saved after the steps `saved` too; return the marker."""
    config = {"task": split.task, "seed": seed, "training": training.config(), "saved": list(saved)}
    config |= {"base": (store.read(base) or {})["config"]} | (facts or {})

    def make(part: Path, measured: Result) -> None:
        draw = seed_of("nli", seed, split.task)
        torch.manual_seed(draw)
        adapted = _adapted(base, training)
        items = Prompts(split.train, base)

        def after(step: int, value: torch.Tensor) -> None:
            if step + 1 in saved:
                adapted.save_pretrained(at_step(part, step + 1, training.steps))
            if (step + 1) % EVERY == 0:
                say(f"{step + 1} of {training.steps} steps, loss {value.item():.3f}")

        with timed(measured):
            measured["losses"] = _fit(adapted, items, word_ids(base, split.task), training, draw, after)
        adapted.save_pretrained(part)

    return cached(folder, config, make)


def _adapted(base: Path, training: Training) -> Any:
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=training.rank, lora_alpha=training.alpha, target_modules=TARGETS)
    return get_peft_model(load(base, base), lora)


def _fit(
    adapted: Any, items: Prompts, answers: Sequence[int], training: Training, seed: int, after: Any
) -> list[float]:
    """Train in place: AdamW, warm-up, linear decay; return the mean loss of every tenth of the steps."""
    model = adapted.get_base_model()
    weights = [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=training.rate, weight_decay=training.decay)
    schedule = paced(optimizer, linear(training.steps, training.warmup))
    batches = like_lengths([len(one) for one in items.ids], training.batch, seed)

    def loss_of(_: int) -> torch.Tensor:
        which = next(batches)
        return cross_entropy(logits(model, items.batch(which), answers), items.labels[which])

    adapted.train()
    return tenths(
        minimise(loss_of, weights, optimizer, schedule, range(training.steps), training.clip, after)
    )


def like_lengths(lengths: Sequence[int], size: int, seed: int) -> Iterator[list[int]]:
    """Yield batches of items of like lengths without end, in random order; each pass has every item once.

    What is left over at the end of a pass, fewer than a batch, goes into none.
    """
    draw = torch.Generator().manual_seed(seed)

    def shuffled(things: Sequence[Any]) -> list[Any]:
        return [things[i] for i in torch.randperm(len(things), generator=draw).tolist()]

    while True:
        order = shuffled(range(len(lengths)))
        for at in range(0, len(order), BUCKET * size):
            bucket = sorted(order[at : at + BUCKET * size], key=lambda i: lengths[i])
            parts = [bucket[i : i + size] for i in range(0, len(bucket), size)]
            yield from shuffled([part for part in parts if len(part) == size])
