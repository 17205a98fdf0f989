"""The router of a served model with unlabelled inputs of each task, from one pass over all items."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks.replication.encoder import Items
from submerge.routing import RouterCalibration, fit_calibration

__all__ = ["InputScores", "Shown"]


@dataclass(frozen=True)
class Shown:
    """What a first pass shows of items: inputs at each site [n, d], and the scores without data [n, T]."""

    sites: Mapping[int, torch.Tensor]
    data_free: torch.Tensor

    def last(self, count: int) -> Shown:
        """Return what it shows of the last items."""
        return Shown({site: x[-count:] for site, x in self.sites.items()}, self.data_free[-count:])


class InputScores:
    """Scores of a served model without heads, whose evidence is given: any number of inputs has one pass."""

    def __init__(
        self, model: Any, items: Callable[[str, str], Items], heads: Callable[[str, str], torch.Tensor]
    ) -> None:
        self.model, self.items, self.heads = model, items, heads
        self._shown: dict[tuple[str, str], Shown] = {}

    def calibration(
        self, tasks: Sequence[str], part: str, count: int, shrinkage: float | None
    ) -> RouterCalibration:
        """Return the calibration by the last inputs of each task in a part."""
        own = [self.shown(part, task).last(count) for task in tasks]
        numbers = [torch.full((len(one.data_free),), task) for task, one in enumerate(own)]
        vectors = {site: torch.cat([one.sites[site] for one in own]) for site in own[0].sites}
        data_free = torch.cat([one.data_free for one in own])
        return fit_calibration(tasks, vectors, torch.cat(numbers), {True: data_free}, {}, shrinkage)

    def scores(self, calibration: RouterCalibration, part: str, task: str) -> torch.Tensor:
        """Return the scores of a part of one task's items [n, T]."""
        shown = self.shown(part, task)
        return calibration.scores(shown.sites, shown.data_free, heads=True)

    @torch.inference_mode()
    def shown(self, part: str, task: str) -> Shown:
        """Return what a pass over a part of one task's items shows, once."""
        if (part, task) not in self._shown:
            items, heads = self.items(part, task), self.heads(part, task)
            router, batches = self.model.router, items.batches()
            sites: dict[int, list[torch.Tensor]] = {}
            data_free: list[torch.Tensor] = []
            for which in batches:
                batch = items.batch(which)
                router.first_pass.find_sites(self.model, batch, len(which))
                gathered = range(len(router.sites))
                evidence = router.first_pass.evidence(self.model, batch, len(which), gathered)
                for site, x in evidence.inputs.items():
                    sites.setdefault(site, []).append(x)
                data_free.append(router.data_free(replace(evidence, heads=heads[which])))
            back = torch.tensor([number for which in batches for number in which]).argsort()
            joined = {site: torch.cat(parts)[back] for site, parts in sites.items()}
            self._shown[part, task] = Shown(joined, torch.cat(data_free)[back])
        return self._shown[part, task]
