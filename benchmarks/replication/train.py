"""Trains the specialists of a suite: full fine-tunes and LoRA adapters, with frozen heads."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from benchmarks.replication import cache as store
from benchmarks.replication.cache import Cache
from benchmarks.replication.encoder import Domain, Items
from benchmarks.replication.heads import Head, loss, shots
from benchmarks.replication.splits import Split
from benchmarks.replication.suite import DENSE, Rows, Suite, Training, seed_of

__all__ = ["fit", "heads", "load_heads", "specialist", "write_base"]


EVERY = 20.0
"""Seconds between two lines of a training."""


def write_base(suite: Suite, cache: Cache) -> None:
    """Write the base into the cache, once."""
    config = {"base": suite.base.home or suite.name} | suite.base.facts
    if store.done(cache.base, config) is None:
        with store.write_whole(cache.base, config) as (folder, measured):
            started = time.perf_counter()
            suite.base.write(folder)
            measured["seconds"] = round(time.perf_counter() - started, 2)


def heads(suite: Suite, cache: Cache, read: Callable[[], Mapping[str, Split]], seed: int) -> None:
    """Make a seed's frozen heads of the whole suite from base features, unless the cache has them."""
    suite = suite.home
    folder, config = cache.heads(seed), suite.facts() | {"seed": seed}
    if store.done(folder, config) is not None:
        return
    splits, domain = read(), suite.domain
    base = domain.load(cache.base, cache.base)

    def items(rows: Rows, kind: str) -> Items:
        return domain.items(rows, cache.base, kind)

    def features(rows: Rows, kind: str) -> torch.Tensor:
        return domain.features(base, items(rows, kind))

    generic: dict[str, list[torch.Tensor]] = {}
    for split in splits.values():
        some = features(split.train[: suite.generic], split.kind)
        generic.setdefault(_centre(split.kind), []).append(some.flatten(0, -2))
    found = {name: torch.cat(parts).mean(0) for name, parts in generic.items()}
    for name, split in splits.items():
        groups = shots(split.train, split.kind, split.classes, suite.shots, seed_of(seed, name))
        centre, parts = found[_centre(split.kind)], [features(rows, split.kind) for rows in groups]
        if split.kind == DENSE:
            made = Head.of_places(centre, parts[0], items(groups[0], DENSE).labels)
        else:
            made = Head.of(centre, parts)
        found[name] = made.vectors
    with store.write_whole(folder, config) as (part, _):
        save_file(found, part / "heads.safetensors")


def load_heads(suite: Suite, cache: Cache, splits: Mapping[str, Split], seed: int) -> dict[str, Head]:
    """Return task -> head, as they lie in the cache."""
    found = load_file(cache.heads(seed) / "heads.safetensors")
    return {
        name: Head(found[_centre(split.kind)], found[name], split.kind, suite.head_scale)
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
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Train one model on one task, unless the cache has it; return its marker."""
    training, domain = suite.trainings[kind], suite.domain
    config = suite.home.facts() | {
        "task": split.task,
        "kind": kind,
        "seed": seed,
        "training": training.config(),
    }
    folder = cache.specialist(seed, kind, split.task)
    if (found := store.done(folder, config)) is not None:
        return found
    draw = seed_of(seed, kind, split.task)
    torch.manual_seed(draw)
    model = _new(domain, cache.base, training)
    items = domain.items(split.train, cache.base, split.kind)
    with store.write_whole(folder, config) as (part, measured):
        started = time.perf_counter()
        measured["losses"] = fit(domain, model.to(device), items, head.to(device), training, draw, say)
        measured["seconds"] = round(time.perf_counter() - started, 2)
        model.cpu().save_pretrained(part)
        if not training.rank:
            _copy_beside(domain, cache.base, part)
        measured["bytes"] = sum(f.stat().st_size for f in part.glob("*.safetensors"))
        measured["device"] = device
    found = store.read(folder)
    assert found is not None
    return found


def _new(domain: Domain, base: Path, training: Training) -> Any:
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
    say: Callable[[str], None] = lambda _: None,
) -> list[float]:
    """Train in place: AdamW, warm-up, linear decay; return the mean loss of every tenth of the steps.

    Now and then `say` is told how far it is.
    """
    draw = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # dropout
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=training.rate, weight_decay=training.decay)
    warm, steps = min(training.warmup, max(1, training.steps // 5)), training.steps
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, (steps - step) / max(1, steps - warm))
    )
    labels = items.labels.to(model.device)
    model.train()
    losses, left = [], []
    said = time.perf_counter()
    for step in range(steps):
        if len(left) < training.batch:
            left = torch.randperm(len(items), generator=draw).tolist()
        which, left = left[: training.batch], left[training.batch :]
        batch = items.batch(which, model.device, draw)
        pooled = domain.pooled(model(**batch).last_hidden_state, batch, items.kind)
        value = loss(head, pooled, labels[which])
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(weights, training.clip)
        optimizer.step()
        schedule.step()
        losses.append(value.detach())
        if time.perf_counter() - said > EVERY:
            said = time.perf_counter()
            say(f"{step + 1} of {steps} steps, loss {value.item():.3f}")
    model.eval()
    values = torch.stack(losses).cpu()
    return [round(part.mean().item(), 4) for part in values.tensor_split(min(10, steps))]
