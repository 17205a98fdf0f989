"""Which tasks the inputs of a file are given, and the scores by which the router chose them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from submerge.calibrate import Item, batches, processor_for, read_items
from submerge.errors import Problem, RequestError, few
from submerge.routing import zscores
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
    def labelled(self) -> bool:
        """Whether the tasks of all inputs are known."""
        return all(item.task for item in self.items)

    @property
    def confusion(self) -> dict[str, dict[str, int]]:
        """Known task → chosen task → how many inputs."""
        pairs = Counter((item.task, task) for item, task in zip(self.items, self.tasks, strict=True))
        known = dict.fromkeys(item.task for item in self.items if item.task)
        return {own: {name: pairs[own, name] for name in self.names} for own in known}

    @property
    def accuracy(self) -> float:
        """The share of the inputs that got their own task."""
        correct = [item.task == task for item, task in zip(self.items, self.tasks, strict=True)]
        return sum(correct) / len(correct)

    def to_dict(self) -> dict[str, Any]:
        """Return the survey as plain data for JSON."""
        means = self.scores.mean(1).tolist() if len(self.sites) else []
        survey: dict[str, Any] = {
            "tasks": list(self.names),
            "inputs": [self._input(number) for number in range(len(self.items))],
            "chosen": dict(Counter(self.tasks)),
            "sites": {
                site: dict(zip(self.names, row, strict=True))
                for site, row in zip(self.sites, means, strict=True)
            },
        }
        return survey | ({"accuracy": self.accuracy, "confusion": self.confusion} if self.labelled else {})

    def _input(self, number: int) -> dict[str, Any]:
        item = self.items[number]
        return {
            "input": item.shown,
            "task": self.tasks[number],
            "selected": list(self.selected[number]),
            "coefficients": dict(zip(self.names, map(float, self.coefficients[number]), strict=True)),
            **({"told": item.task} if item.task else {}),
        }


def survey(folder: Path, data: Path, *, batch: int = BATCH) -> Survey:
    """Return the tasks that a folder's router finds for the inputs of a file; nothing is answered.

    Raises `RequestError` where the file, the folder, or a task that the file names is wrong.
    """
    items = read_items(data)
    model = load(folder, features=True)
    if not hasattr(model, "router"):
        raise RequestError(
            Problem("the gate of this folder routes no inputs", str(folder), "there is nothing to look at")
        )
    names: tuple[str, ...] = model.router.names
    _check_tasks(items, names, data)
    processor = processor_for(items[0], folder)
    rows: dict[int, tuple[Any, int]] = {}  # of each item: the routing of its batch, and its row there
    for part in batches(items, processor, batch):
        routing = model.route(**part.inputs, details=True)
        rows |= {place: (routing, row) for row, place in enumerate(part.places)}
    return _joined(names, items, [rows[place] for place in range(len(items))])


def _check_tasks(items: Iterable[Item], names: Sequence[str], data: Path) -> None:
    unknown = sorted({item.task for item in items if item.task} - set(names))
    if unknown:
        raise RequestError(
            Problem(f"unknown tasks: {few(unknown)}", str(data), f"there are {few(names, 20)}")
        )


def _joined(names: tuple[str, ...], items: Sequence[Item], rows: Sequence[tuple[Any, int]]) -> Survey:
    """Return the survey of items, each with the routing of its batch and its row there."""
    scores = [zscores(r.residuals[:, at]) for r, at in rows if r.residuals is not None]
    return Survey(
        names,
        tuple(items),
        tuple(r.tasks[at] for r, at in rows),
        tuple(r.selected[at] for r, at in rows),
        torch.stack([r.coefficients[at] for r, at in rows]).cpu(),
        rows[0][0].sites,
        torch.stack(scores, dim=1).cpu() if scores else torch.zeros(0, len(items), len(names)),
    )
