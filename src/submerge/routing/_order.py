"""The order in which the samples of a batch run: those with one set of tasks together, large sets first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from submerge.gating import Span, reordered
from submerge.routing._router import Routing

__all__ = ["BatchOrder", "batch_order", "order_of"]


@dataclass(frozen=True)
class BatchOrder:
    """A batch as it runs: `spans` by the sets of tasks, `leads` by the tasks whose heads answer.

    `order` [B] sorts the batch, and `inverse` undoes that; None: as it is.
    """

    spans: tuple[Span, ...]
    leads: tuple[Span, ...]
    order: torch.Tensor | None
    inverse: torch.Tensor | None

    def sorted(self, values: Any, rows: int) -> Any:
        """Return inputs in the order in which they run."""
        return values if self.order is None else reordered(values, self.order, rows)

    def restored(self, values: Any, rows: int) -> Any:
        """Return outputs in the order of the inputs; each sample may have several rows, together."""
        if self.inverse is None:
            return values
        each = torch.arange(rows // len(self.inverse))
        order = (self.inverse.unsqueeze(1) * len(each) + each).flatten()
        return reordered(values, order, rows)


def order_of(routing: Routing) -> BatchOrder:
    """Return the order in which the samples of a routed batch run."""
    sets = [tuple(routing.names.index(name) for name in names) for names in routing.selected]
    return batch_order(sets, routing.lead.tolist())


def batch_order(sets: Sequence[tuple[int, ...]], leads: Sequence[int]) -> BatchOrder:
    """Return the order for samples with these sets of tasks, and these tasks whose heads answer."""
    counts = {one: sets.count(one) for one in set(sets)}
    keys = [(-counts[one], one, lead) for one, lead in zip(sets, leads, strict=True)]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    spans, own = _runs([sets[i] for i in order]), _runs([(leads[i],) for i in order])
    if order == sorted(order):
        return BatchOrder(spans, own, None, None)
    permutation = torch.tensor(order)
    return BatchOrder(spans, own, permutation, permutation.argsort())


def _runs(keys: Sequence[tuple[int, ...]]) -> tuple[Span, ...]:
    """Return a span for each run of equal keys."""
    spans: list[Span] = []
    for place, key in enumerate(keys):
        if spans and spans[-1].members == key:
            spans[-1] = Span(key, spans[-1].start, place + 1)
        else:
            spans.append(Span(key, place, place + 1))
    return tuple(spans)
