"""Which tasks the inputs of a file are given, and what the router saw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from submerge.errors import Problem, RequestError, few
from submerge.routing import zscores
from submerge.runtime._items import Item, prepared, read_items
from submerge.serving import load

__all__ = ["Survey", "survey"]

BATCH = 32


@dataclass(frozen=True)
class Survey:
    """The inputs with their tasks and shares [B, T], and −r as z-scores at each site [sites, B, T]."""

    names: tuple[str, ...]
    items: tuple[Item, ...]
    tasks: tuple[str, ...]
    selected: tuple[tuple[str, ...], ...]
    coefficients: torch.Tensor
    sites: tuple[str, ...]
    scores: torch.Tensor

    @property
    def told(self) -> bool:
        """Whether the tasks of all inputs are known."""
        return all(item.task for item in self.items)

    @property
    def confusion(self) -> dict[str, dict[str, int]]:
        """Known task → chosen task → how many inputs."""
        pairs = Counter((item.task, task) for item, task in zip(self.items, self.tasks, strict=True))
        rows = dict.fromkeys(item.task for item in self.items)
        return {row: {name: pairs[row, name] for name in self.names} for row in rows if row}

    @property
    def accuracy(self) -> float:
        """The share of the inputs that got their own task."""
        own = [item.task == task for item, task in zip(self.items, self.tasks, strict=True)]
        return sum(own) / len(own)

    def to_dict(self) -> dict[str, Any]:
        """Return the survey as plain data for JSON."""
        each = [
            {
                "input": item.shown,
                "task": task,
                "selected": list(selected),
                "coefficients": dict(zip(self.names, map(float, shares), strict=True)),
                **({"told": item.task} if item.task else {}),
            }
            for item, task, selected, shares in zip(
                self.items, self.tasks, self.selected, self.coefficients, strict=True
            )
        ]
        means = self.scores.mean(1).tolist() if len(self.sites) else []
        found: dict[str, Any] = {
            "tasks": list(self.names),
            "inputs": each,
            "chosen": dict(Counter(self.tasks)),
            "sites": {
                site: dict(zip(self.names, row, strict=True))
                for site, row in zip(self.sites, means, strict=True)
            },
        }
        return found | ({"accuracy": self.accuracy, "confusion": self.confusion} if self.told else {})


def survey(folder: Path, data: Path, *, batch: int = BATCH) -> Survey:
    """Return the tasks that a folder's router finds for the inputs of a file; nothing is answered."""
    items = read_items(data)
    model = load(folder, features=True)
    names: tuple[str, ...] = model.router.names
    unknown = sorted({item.task for item in items if item.task} - set(names))
    if unknown:
        raise RequestError(
            Problem(f"unknown tasks: {few(unknown)}", str(data), f"there are {few(names, 20)}")
        )
    prepare = prepared(folder, items)
    # pairs and single texts are not of one batch; each is then told by its own form
    order = sorted(range(len(items)), key=lambda i: bool(items[i].text_pair))
    found: dict[int, Any] = {}
    for run in _runs([items[i] for i in order], batch):
        some = [order[i] for i in run]
        routing = model.route(**prepare([items[i] for i in some]), details=True)
        for place, i in enumerate(some):
            found[i] = (routing, place)
    routings = [found[i] for i in range(len(items))]
    first = routings[0][0]
    scores = [zscores(r.residuals[:, at]) for r, at in routings if r.residuals is not None]
    return Survey(
        names,
        tuple(items),
        tuple(r.tasks[at] for r, at in routings),
        tuple(r.selected[at] for r, at in routings),
        torch.stack([r.coefficients[at] for r, at in routings]).cpu(),
        first.sites,
        torch.stack(scores, dim=1).cpu() if scores else torch.zeros(0, len(items), len(names)),
    )


def _runs(items: Sequence[Item], batch: int) -> list[range]:
    """Return batches of neighbours that are all pairs or all single texts."""
    pairs = sum(bool(item.text_pair) for item in items)
    edges = [(0, len(items) - pairs), (len(items) - pairs, len(items))]
    return [range(a, min(a + batch, stop)) for start, stop in edges for a in range(start, stop, batch)]
