"""What a merged model is asked: groups of questions, with fixed items for validation and for test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.replication.audiovisual.encoders import Features
from benchmarks.replication.audiovisual.items import STREAMS, InputPool, SlotQuestion, batch, draw
from benchmarks.replication.audiovisual.modalities import MODALITIES
from benchmarks.replication.lm.streams import StreamedLM, TokenBatch
from benchmarks.replication.lm.words import ONE, TWO
from benchmarks.replication.probe_groups import group_means
from benchmarks.replication.rows import seed_of

__all__ = ["COUNTED", "GROUPS", "MEAN", "PROBES", "ProbeBatches", "ProbeQuestions", "groups"]

AT_ONCE = 300
"""Items of one forward pass."""


@dataclass(frozen=True)
class ProbeQuestions:
    """Questions of these names about some of these slots.

    The first `asked` slots are asked about, in their order, or in a new order for every item if `mixed`.
    """

    name: str
    group: str
    questions: tuple[str, ...]
    slots: tuple[str, ...]
    noisy: bool = False
    mixed: bool = False

    def items(self, pool: InputPool, count: int, part: str) -> list[SlotQuestion]:
        """Return the same items whenever it is called."""
        generator = np.random.default_rng(seed_of("probe", part, self.name))
        items = []
        for _ in range(count):
            slots = list(self.slots)
            if self.mixed:
                slots = [slots[i] for i in generator.permutation(len(slots))]
            items.append(draw(pool, self.questions, slots, generator, self.noisy))
        return items


_ONE, _TWO = tuple(one.name for one in ONE), tuple(one.name for one in TWO)
_SLOTS = tuple(one.slot for one in MODALITIES)
_FIRST, _SECOND, _THIRD = _SLOTS

_JOINT = ("sum", "same", "above", "largest")

PROBES = (
    *(ProbeQuestions(f"own {slot}", "own", _ONE, (slot,)) for slot in _SLOTS),
    *(ProbeQuestions(f"new {one.slot}", "new", (one.new,), (one.slot,)) for one in MODALITIES),
    *(ProbeQuestions(f"joint {name}", "joint", (name,), (_FIRST, _SECOND)) for name in _JOINT),
    *(ProbeQuestions(f"{slot} and {_THIRD}", "pairs", _TWO, (slot, _THIRD)) for slot in (_FIRST, _SECOND)),
    ProbeQuestions("two of three", "three", _TWO, _SLOTS, mixed=True),
    *(
        ProbeQuestions(f"degraded {slot}", "degraded", ("number",), (slot,), noisy=True)
        for slot in (_FIRST, _SECOND)
    ),
    ProbeQuestions("degraded both", "fused", ("both",), (_FIRST, _SECOND), noisy=True),
    *(ProbeQuestions(f"{slot} and word", "words", _TWO, (slot, "note"), mixed=True) for slot in _SLOTS),
    ProbeQuestions("text", "text", _TWO, ("note", *_SLOTS), mixed=True),
    *(
        ProbeQuestions(f"{one.new} of {slot}", "moved", (one.new,), (slot,))
        for one, slot in zip(MODALITIES, (*_SLOTS[1:], _FIRST), strict=True)
    ),
)
GROUPS = tuple(dict.fromkeys(probe.group for probe in PROBES))
MEAN = ("own", "new", "joint", "pairs", "three", "fused")
"""Groups whose mean is the score of a model; scales are tuned for it."""
COUNTED = tuple(probe.name for probe in PROBES if probe.group in MEAN)


class ProbeBatches:
    """The questions of one part, ready as batches for a model of these modalities."""

    def __init__(
        self,
        features: Mapping[str, Mapping[str, Features]],
        part: str,
        count: int,
        modalities: Sequence[str] = tuple(STREAMS),
    ) -> None:
        pool = InputPool({slot: parts[part] for slot, parts in features.items()})
        words = InputPool({})
        self.batches: dict[str, list[TokenBatch]] = {}
        for probe in PROBES:
            items = probe.items(words if probe.group == "text" else pool, count, part)
            self.batches[probe.name] = [
                batch(items[at : at + AT_ONCE], pool.features, modalities)
                for at in range(0, len(items), AT_ONCE)
            ]

    def scores(self, model: StreamedLM, names: Sequence[str] | None = None) -> dict[str, float]:
        """Return probe -> accuracy, of all probes or of those named."""
        return {
            name: model.accuracy(batches)
            for name, batches in self.batches.items()
            if names is None or name in names
        }


def groups(scores: Mapping[str, float]) -> dict[str, float]:
    """Return group -> mean over its probes, as far as they were asked, and the mean over `MEAN`."""
    return group_means(scores, PROBES, MEAN)
