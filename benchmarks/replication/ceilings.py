"""What a merge is held against: base, individual models, compression, a trained router."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from typing import Any

import torch

import submerge
from benchmarks.replication import cache as store
from benchmarks.replication.cache import Cache
from benchmarks.replication.methods import Merge
from benchmarks.replication.scores import Scorer
from benchmarks.replication.splits import Split
from benchmarks.replication.suite import CLASSES, Suite

__all__ = ["NAMES", "ceilings", "lda", "route", "route_all"]

NAMES = ("base", "individual", "compression", "lda_router")
WRONG_SCORE = 0.5
"""What a scored task gets for an input that was sent to another task's model; a class is then wrong."""
SHRINKAGE = 0.1


def ceilings(
    suite: Suite,
    cache: Cache,
    splits: Mapping[str, Split],
    scorer: Scorer,
    kind: str,
    seed: int,
    config: Mapping[str, Any],
    settings: submerge.Settings,
    device: str = "cpu",
) -> dict[str, dict[str, Any]]:
    """Return name -> validation and test scores of every task, from the cache where it has them."""
    folders = {name: cache.result(seed, kind, name) for name in NAMES}
    found = {name: store.done(folder, config) for name, folder in folders.items()}
    if all(found.values()):
        return {name: one for name, one in found.items() if one}
    started = time.perf_counter()
    made = _measure(suite, cache, splits, scorer, kind, seed, settings, device)
    made["individual"]["seconds_in_all"] = round(time.perf_counter() - started, 2)  # of all of them
    for name, folder in folders.items():
        with store.write_whole(folder, config) as (_, measured):
            measured.update(made[name])
    return made


def _measure(
    suite: Suite,
    cache: Cache,
    splits: Mapping[str, Split],
    scorer: Scorer,
    kind: str,
    seed: int,
    settings: submerge.Settings,
    device: str,
) -> dict[str, dict[str, Any]]:
    made: dict[str, dict[str, Any]] = {name: {"validation": {}, "test": {}} for name in NAMES}
    load = suite.domain.load
    base = load(cache.base, cache.base, device)
    routed = route_all(suite, cache, splits, scorer, base)
    made["lda_router"]["layer"] = routed.pop("layer")
    made["lda_router"]["routed"] = {}
    rank, size, cut = compressed_rank(suite, kind, base.config.hidden_size), 0, 0
    for number, task in enumerate(splits):
        folder = cache.specialist(seed, kind, task)
        own = load(folder, cache.base, device)
        out = cache.result(seed, kind, "scratch") / "compressed"
        row = Merge("compression", method="tsv_m", shared={"rank": rank}, form="adapter")
        recipe = row.write(out.with_suffix(".yaml"), cache.base, [folder], kind=kind)
        submerge.merge(recipe, out, settings=settings, overwrite=True)
        small = load(out, cache.base, device)
        size += sum(f.stat().st_size for f in folder.glob("*.safetensors"))
        cut += factors(base.state_dict(), small.state_dict(), rank)
        shutil.rmtree(out)
        for part in ("validation", "test"):
            predicted = scorer.predictions(own, part, task)
            right = routed[part][task] == number
            made["base"][part][task] = scorer.score(base, part, task)
            made["individual"][part][task] = scorer.of(predicted, part, task)
            made["compression"][part][task] = scorer.score(small, part, task)
            wrong = -1 if splits[task].kind == CLASSES else WRONG_SCORE
            sent = torch.where(_like(right, predicted), predicted, torch.full_like(predicted, wrong))
            made["lda_router"][part][task] = scorer.of(sent, part, task)
            if part == "test":
                made["lda_router"]["routed"][task] = right.double().mean().item()
    made["base"]["bytes"] = sum(f.stat().st_size for f in cache.base.glob("*.safetensors"))
    made["individual"]["bytes"] = size
    made["compression"] |= {"rank": rank, "bytes": 4 * cut}
    return made


def _like(right: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
    """Return a row's answer for all of its numbers."""
    return right.view(-1, *[1] * (predicted.ndim - 1))


def compressed_rank(suite: Suite, kind: str, width: int) -> int:
    """Return the rank that each of T updates keeps: 1/T of a full one, or of the adapter's own."""
    return max(1, (suite.trainings[kind].rank or width) // len(suite.tasks))


def factors(base: Mapping[str, torch.Tensor], tuned: Mapping[str, torch.Tensor], rank: int) -> int:
    """Return how many numbers hold an update whose matrices have this rank; what is unchanged needs none."""
    changed = {name: value for name, value in tuned.items() if not torch.equal(value, base[name])}
    return sum(rank * sum(value.shape) if value.ndim == 2 else value.numel() for value in changed.values())


def route_all(
    suite: Suite, cache: Cache, splits: Mapping[str, Split], scorer: Scorer, base: Any
) -> dict[str, Any]:
    """Return part -> task -> the task that each input is sent to, by the layer that validation prefers."""
    domain = suite.domain
    shown = [
        (split.train[-suite.router_shots :], split.kind) for split in splits.values()
    ]  # heads and centre take the first
    examples = [
        domain.features(base, domain.items(rows, cache.base, kind), layers=True).transpose(0, 1)
        for rows, kind in shown
    ]
    layers = range(len(examples[0]))
    routers = [lda([some[layer] for some in examples]) for layer in layers]
    found: dict[str, Any] = {part: {} for part in ("validation", "test")}
    for part in found:
        for task, items in scorer.items[part].items():
            states = domain.features(base, items, layers=True)
            found[part][task] = [route(routers[layer], states[:, layer]) for layer in layers]

    def accuracy(layer: int) -> float:
        sent = found["validation"].values()
        return sum((one[layer] == i).double().mean().item() for i, one in enumerate(sent))

    best = max(layers, key=accuracy)
    chosen = {part: {task: one[best] for task, one in tasks.items()} for part, tasks in found.items()}
    return chosen | {"layer": best}


def lda(examples: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weights, shape [T, d], and offsets, shape [T], of a linear discriminant with equal priors.

    The common covariance is shrunk towards its mean variance, for there are few examples.
    """
    groups = [group.double() for group in examples]
    means = torch.stack([group.mean(0) for group in groups])
    rest = torch.cat([group - mean for group, mean in zip(groups, means, strict=True)])
    covariance = rest.T @ rest / max(1, len(rest) - len(groups))
    spread = covariance.diagonal().mean()
    covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * spread * torch.eye(len(covariance)).double()
    weights = torch.linalg.solve(covariance, means.T).T
    return weights, -0.5 * (weights * means).sum(1)


def route(router: tuple[torch.Tensor, torch.Tensor], states: torch.Tensor) -> torch.Tensor:
    """Return the number of the task that each input is sent to."""
    weights, offsets = router
    return (states.double() @ weights.T + offsets).argmax(1)
