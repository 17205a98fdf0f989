"""What a merge is compared with: base, individual models, compression, a trained router."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

import submerge
from benchmarks.replication.bench import weight_bytes
from benchmarks.replication.cache import Result, cached, timed
from benchmarks.replication.methods import Merge
from benchmarks.replication.scores import Scorer
from benchmarks.replication.specialists import MEMORY, Specialists

__all__ = ["NAMES", "ceilings", "lda", "route", "route_all"]

NAMES = ("base", "individual", "compression", "lda_router")
SHRINKAGE = 0.1


def ceilings(
    specialists: Specialists, scorer: Scorer, config: Mapping[str, Any], threads: int, device: str = "cpu"
) -> dict[str, Result]:
    """Return name -> validation and test scores of every task, from the cache where it has them."""

    @cache  # all are measured together, where one is missing
    def measured() -> dict[str, Result]:
        together: Result = {}
        with timed(together, "seconds_in_all"):
            results = _measure(specialists, scorer, threads, device)
        results["individual"] |= together
        return results

    return {
        name: cached(
            specialists.result(name), config, lambda _, result, name=name: result.update(measured()[name])
        )
        for name in NAMES
    }


def _measure(specialists: Specialists, scorer: Scorer, threads: int, device: str) -> dict[str, Result]:
    results: dict[str, Result] = {name: {"validation": {}, "test": {}} for name in NAMES}
    base = specialists.base(device)
    routed = route_all(specialists, scorer, base, specialists.suite.router_shots)
    results["lda_router"]["layer"] = routed.pop("layer")
    results["lda_router"]["routed"] = {}
    rank, numbers = compressed_rank(specialists, base.config.hidden_size), 0
    for number, (task, folder) in enumerate(zip(specialists.tasks, specialists.models, strict=True)):
        own = specialists.load(folder, device)
        small = _compressed(specialists, folder, rank, threads, device)
        numbers += factors(base.state_dict(), small.state_dict(), rank)
        for part in ("validation", "test"):
            predicted = scorer.predictions(own, part, task)
            right = routed[part][task] == number
            results["base"][part][task] = scorer.score(base, part, task)
            results["individual"][part][task] = scorer.of(predicted, part, task)
            results["compression"][part][task] = scorer.score(small, part, task)
            results["lda_router"][part][task] = scorer.strict(predicted, right, part, task)
            if part == "test":
                results["lda_router"]["routed"][task] = right.double().mean().item()
    results["base"]["bytes"] = weight_bytes(specialists.cache.base)
    results["individual"]["bytes"] = sum(map(weight_bytes, specialists.models))
    results["compression"] |= {"rank": rank, "bytes": 4 * numbers}
    return results


def _compressed(specialists: Specialists, folder: Path, rank: int, threads: int, device: str) -> Any:
    """Return a specialist whose update is cut to a rank."""
    out = specialists.result("scratch") / "compressed"
    row = Merge("compression", method="tsv_m", shared={"rank": rank}, form="adapter")
    base, kind = specialists.cache.base, specialists.kind
    recipe = row.write(out.with_suffix(".yaml"), base, [folder], kind=kind)
    settings = submerge.Settings(threads=threads, max_memory=MEMORY)
    submerge.merge(recipe, out, settings=settings, overwrite=True)
    small = specialists.load(out, device)
    shutil.rmtree(out)
    return small


def compressed_rank(specialists: Specialists, width: int) -> int:
    """Return the rank that each of T updates has left: 1/T of a full one, or of the adapter's own."""
    suite = specialists.suite
    return max(1, (suite.trainings[specialists.kind].rank or width) // len(suite.tasks))


def factors(base: Mapping[str, torch.Tensor], tuned: Mapping[str, torch.Tensor], rank: int) -> int:
    """Return how many numbers hold an update whose matrices have this rank; what is unchanged needs none."""
    changed = {name: value for name, value in tuned.items() if not torch.equal(value, base[name])}
    return sum(rank * sum(value.shape) if value.ndim == 2 else value.numel() for value in changed.values())


def route_all(specialists: Specialists, scorer: Scorer, base: Any, labelled: int) -> dict[str, Any]:
    """Return part -> task -> the task that each input is sent to, by the layer that validation prefers.

    The discriminants are fitted to so many labelled inputs of each task.
    """
    domain, place = specialists.domain, specialists.cache.base
    examples = [
        domain.features(base, domain.items(split.train[-labelled:], place, split.kind), layers=True)
        for split in specialists.splits.values()  # heads and centre take the first rows
    ]
    layers = range(examples[0].shape[1])
    routers = [lda([states[:, layer] for states in examples]) for layer in layers]
    sent: dict[str, dict[str, list[torch.Tensor]]] = {part: {} for part in ("validation", "test")}
    for part, tasks in sent.items():
        for task, items in scorer.items[part].items():
            states = domain.features(base, items, layers=True)
            tasks[task] = [route(routers[layer], states[:, layer]) for layer in layers]

    def accuracy(layer: int) -> float:
        tasks = sent["validation"].values()
        return sum((task[layer] == i).double().mean().item() for i, task in enumerate(tasks))

    best = max(layers, key=accuracy)
    chosen = {part: {task: each[best] for task, each in tasks.items()} for part, tasks in sent.items()}
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
