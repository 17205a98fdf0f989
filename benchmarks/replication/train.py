"""Trains the specialists of a suite: full fine-tunes and LoRA adapters, with frozen heads."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from benchmarks.console import Say, silent
from benchmarks.replication.cache import Cache, Result, cached, timed
from benchmarks.replication.encoder import Domain, Items
from benchmarks.replication.heads import Head, loss, shots
from benchmarks.replication.loop import linear, minimise, paced, tenths
from benchmarks.replication.rows import DENSE, Rows, seed_of
from benchmarks.replication.splits import Split
from benchmarks.replication.suite import Suite, Training

__all__ = ["fit", "heads", "load_heads", "specialist", "untrained", "write_base"]


EVERY = 20.0
"""Seconds between two lines of a training."""


def write_base(suite: Suite, cache: Cache) -> None:
    """Write the base into the cache, once."""

    def make(folder: Path, measured: Result) -> None:
        with timed(measured):
            suite.base.write(folder)

    cached(cache.base, {"base": suite.base.home or suite.name} | suite.base.facts, make)


def heads(suite: Suite, cache: Cache, read: Callable[[], Mapping[str, Split]], seed: int) -> None:
    """Make a seed's frozen heads of the home suite from base features, unless the cache has them."""
    suite = suite.home

    def make(folder: Path, _: Result) -> None:
        save_file(_heads(suite, cache, read(), seed), folder / "heads.safetensors")

    cached(cache.heads(seed), suite.facts() | {"seed": seed}, make)


def _heads(suite: Suite, cache: Cache, splits: Mapping[str, Split], seed: int) -> dict[str, torch.Tensor]:
    """Return the centres, and each task's class vectors."""
    domain = suite.domain
    base = domain.load(cache.base, cache.base)

    def items(rows: Rows, kind: str) -> Items:
        return domain.items(rows, cache.base, kind)

    def features(rows: Rows, kind: str) -> torch.Tensor:
        return domain.features(base, items(rows, kind))

    generic: dict[str, list[torch.Tensor]] = {}
    for split in splits.values():
        first = features(split.train[: suite.generic], split.kind)
        generic.setdefault(_centre(split.kind), []).append(first.flatten(0, -2))
    tensors = {name: torch.cat(parts).mean(0) for name, parts in generic.items()}
    for name, split in splits.items():
        groups = shots(split.train, split.kind, split.classes, suite.shots, seed_of(seed, name))
        centre, parts = tensors[_centre(split.kind)], [features(rows, split.kind) for rows in groups]
        if split.kind == DENSE:
            head = Head.of_places(centre, parts[0], items(groups[0], DENSE).labels)
        else:
            head = Head.of(centre, parts)
        tensors[name] = head.vectors
    return tensors


def load_heads(suite: Suite, cache: Cache, splits: Mapping[str, Split], seed: int) -> dict[str, Head]:
    """Return task -> head, as they lie in the cache."""
    tensors = load_file(cache.heads(seed) / "heads.safetensors")
    return {
        name: Head(tensors[_centre(split.kind)], tensors[name], split.kind, suite.head_scale)
        for name, split in splits.items()
    }


def _centre(kind: str) -> str:
    """Return the name of the mean feature of generic inputs, or of their places."""
    return "centre of places" if kind == DENSE else "centre"


def specialist(
    suite: Suite,
    cache: Cache,
    split: Split,
    head: Head,
    kind: str,
    seed: int,
    device: str = "cpu",
    say: Say = silent,
) -> Result:
    """Train one model on one task, unless the cache has it; return its marker."""
    training, domain = suite.trainings[kind], suite.domain
    facts = {"task": split.task, "kind": kind, "seed": seed, "training": training.config()}

    def make(folder: Path, measured: Result) -> None:
        draw = seed_of(seed, kind, split.task)
        torch.manual_seed(draw)
        model = untrained(domain, cache.base, training)
        items = domain.items(split.train, cache.base, split.kind)
        with timed(measured):
            measured["losses"] = fit(domain, model.to(device), items, head.to(device), training, draw, say)
        model.cpu().save_pretrained(folder)
        if not training.rank:
            _copy_beside(domain, cache.base, folder)
        measured["bytes"] = sum(f.stat().st_size for f in folder.glob("*.safetensors"))
        measured["device"] = device

    return cached(cache.specialist(seed, kind, split.task), suite.home.facts() | facts, make)


def untrained(domain: Domain, base: Path, training: Training) -> Any:
    """Return the base, of which what a training leaves as it is needs no gradients, or with a new adapter."""
    model = domain.fresh(base)
    if training.rank:
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(
            r=training.rank,
            lora_alpha=training.alpha,
            target_modules=domain.targets,
        )
        return get_peft_model(model, config)
    for module in domain.frozen(model):
        module.requires_grad_(False)
    return model


def _copy_beside(domain: Domain, base: Path, folder: Path) -> None:
    for file in base.iterdir():
        if domain.beside and file.name.startswith(domain.beside):
            (folder / file.name).write_bytes(file.read_bytes())


def fit(
    domain: Domain,
    model: Any,
    items: Items,
    head: Head,
    training: Training,
    seed: int,
    say: Say = silent,
    after: Callable[[int], None] = lambda step: None,
) -> list[float]:
    """Train in place: AdamW, warm-up, linear decay; return the mean loss of every tenth of the steps.

    Now and then `say` gets a line about how far it is, and after each step `after` its number, from 1 on.
    """
    draw = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # dropout
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=training.rate, weight_decay=training.decay)
    schedule = paced(optimizer, linear(training.steps, training.warmup))
    labels = items.labels.to(model.device)
    left: list[int] = []
    last_line = time.perf_counter()

    def loss_of(_: int) -> torch.Tensor:
        nonlocal left
        if len(left) < training.batch:
            left = torch.randperm(len(items), generator=draw).tolist()
        which, left = left[: training.batch], left[training.batch :]
        batch = items.batch(which, model.device, draw)
        pooled = domain.pooled(model(**batch).last_hidden_state, batch, items.kind)
        return loss(head, pooled, labels[which])

    def progress(step: int, value: torch.Tensor) -> None:
        nonlocal last_line
        if time.perf_counter() - last_line > EVERY:
            last_line = time.perf_counter()
            say(f"{step + 1} of {training.steps} steps, loss {value.item():.3f}")
        after(step + 1)

    model.train()
    steps = range(training.steps)
    losses = minimise(loss_of, weights, optimizer, schedule, steps, training.clip, progress)
    model.eval()
    return tenths(losses)
