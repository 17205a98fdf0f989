"""What a merged model is asked: groups of questions, with fixed items for validation and for test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.replication.audiovisual.encoders import Features
from benchmarks.replication.audiovisual.items import STREAMS, Item, Pool, batch, draw
from benchmarks.replication.audiovisual.senses import SENSES
from benchmarks.replication.lm.streams import Batch, Reader
from benchmarks.replication.lm.words import ONE, TWO
from benchmarks.replication.suite import seed_of

__all__ = ["COUNTED", "GROUPS", "MEAN", "PROBES", "Exam", "Probe", "groups"]

AT_ONCE = 300
"""Items of one forward pass."""


@dataclass(frozen=True)
class Probe:
    """Questions of these names about some of these slots.

    The first `asked` slots are asked about, in their order, or in a new order for every item if `mixed`.
    """

    name: str
    group: str
    questions: tuple[str, ...]
    slots: tuple[str, ...]
    noisy: bool = False
    mixed: bool = False

    def items(self, pool: Pool, count: int, part: str) -> list[Item]:
        """Return the same items whenever it is called."""
        generator = np.random.default_rng(seed_of("probe", part, self.name))
        found = []
        for _ in range(count):
            slots = list(self.slots)
            if self.mixed:
                slots = [slots[i] for i in generator.permutation(len(slots))]
            found.append(draw(pool, self.questions, slots, generator, self.noisy))
        return found


_ONE, _TWO = tuple(one.name for one in ONE), tuple(one.name for one in TWO)
_SLOTS = tuple(sense.slot for sense in SENSES)
_FIRST, _SECOND, _THIRD = _SLOTS

_JOINT = ("sum", "same", "above", "largest")

PROBES = (
    *(Probe(f"own {slot}", "own", _ONE, (slot,)) for slot in _SLOTS),
    *(Probe(f"new {sense.slot}", "new", (sense.new,), (sense.slot,)) for sense in SENSES),
    *(Probe(f"joint {name}", "joint", (name,), (_FIRST, _SECOND)) for name in _JOINT),
    *(Probe(f"{slot} and {_THIRD}", "pairs", _TWO, (slot, _THIRD)) for slot in (_FIRST, _SECOND)),
    Probe("two of three", "three", _TWO, _SLOTS, mixed=True),
    *(Probe(f"degraded {slot}", "degraded", ("number",), (slot,), noisy=True) for slot in (_FIRST, _SECOND)),
    Probe("degraded both", "fused", ("both",), (_FIRST, _SECOND), noisy=True),
    *(Probe(f"{slot} and word", "words", _TWO, (slot, "note"), mixed=True) for slot in _SLOTS),
    Probe("text", "text", _TWO, ("note", *_SLOTS), mixed=True),
    *(
        Probe(f"{sense.new} of {slot}", "moved", (sense.new,), (slot,))
        for sense, slot in zip(SENSES, (*_SLOTS[1:], _FIRST), strict=True)
    ),
)
GROUPS = tuple(dict.fromkeys(probe.group for probe in PROBES))
MEAN = ("own", "new", "joint", "pairs", "three", "fused")
"""Groups whose mean is the score of a model; scales are tuned for it."""
COUNTED = tuple(probe.name for probe in PROBES if probe.group in MEAN)


class Exam:
    """The items of one part, ready as batches for a model that sees these modalities."""

    def __init__(
        self,
        features: Mapping[str, Mapping[str, Features]],
        part: str,
        count: int,
        sees: Sequence[str] = tuple(STREAMS),
    ) -> None:
        pool = Pool({slot: some[part] for slot, some in features.items()})
        words = Pool({})
        self.batches: dict[str, list[Batch]] = {}
        for probe in PROBES:
            items = probe.items(words if probe.group == "text" else pool, count, part)
            self.batches[probe.name] = _batches(items, pool.features, sees)

    def scores(self, reader: Reader, names: Sequence[str] | None = None) -> dict[str, float]:
        """Return probe -> accuracy, of all probes or of those named."""
        return {
            name: torch.cat([reader.right(one) for one in some]).double().mean().item()
            for name, some in self.batches.items()
            if names is None or name in names
        }


def _batches(items: Sequence[Item], features: Mapping[str, Features], sees: Sequence[str]) -> list[Batch]:
    return [batch(items[at : at + AT_ONCE], features, sees) for at in range(0, len(items), AT_ONCE)]


def groups(scores: Mapping[str, float]) -> dict[str, float]:
    """Return group -> mean over its probes, as far as they were asked, and the mean over `MEAN`."""
    found = {}
    for group in GROUPS:
        some = [scores[probe.name] for probe in PROBES if probe.group == group and probe.name in scores]
        if some:
            found[group] = sum(some) / len(some)
    if all(group in found for group in MEAN):
        found["mean"] = sum(found[group] for group in MEAN) / len(MEAN)
    return found
