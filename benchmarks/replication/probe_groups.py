"""Means of accuracies over groups of questions, as suites of several modalities tell them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import Protocol

__all__ = ["Probe", "group_means"]


class Probe(Protocol):
    """Questions of one kind, which belong to a group."""

    @property
    def name(self) -> str:
        """How results call them."""

    @property
    def group(self) -> str:
        """Whose mean they are part of."""


def group_means(
    scores: Mapping[str, float], probes: Iterable[Probe], counted: Collection[str]
) -> dict[str, float]:
    """Return group -> mean over its probes, as far as they were asked.

    Where all of the counted groups are there, `mean` is the mean over them.
    """
    asked: defaultdict[str, list[float]] = defaultdict(list)
    for probe in probes:
        if probe.name in scores:
            asked[probe.group].append(scores[probe.name])
    means = {group: sum(values) / len(values) for group, values in asked.items()}
    if asked.keys() >= set(counted):
        means["mean"] = sum(means[group] for group in counted) / len(counted)
    return means
