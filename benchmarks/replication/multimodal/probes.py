"""What a merged model is asked: groups of questions, with fixed items for validation and for test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.replication.multimodal.inputs import DEGRADED, Sets
from benchmarks.replication.multimodal.questions import (
    JOINT,
    SHARED,
    SKILLS,
    draw_joint,
    draw_rows,
    draw_text,
)
from benchmarks.replication.multimodal.reader import PromptRow
from benchmarks.replication.multimodal.unions import PLACEHOLDERS
from benchmarks.replication.probe_groups import group_means
from benchmarks.replication.rows import seed_of

__all__ = ["GROUPS", "MEAN", "PROBES", "ModalityProbe", "groups", "without"]


@dataclass(frozen=True)
class ModalityProbe:
    """Questions of one kind, with inputs of some modalities; `share` of a part's items of joint questions."""

    group: str
    kind: str
    modalities: tuple[str, ...]
    degraded: bool = False
    share: float = 1.0

    @property
    def name(self) -> str:
        """Return how results call it."""
        return f"{self.group}: {self.kind}" + "".join(f" {one}" for one in self.modalities)

    def items(self, sets: Mapping[str, Sets], part: str, count: int) -> list[PromptRow]:
        """Return the same items whenever it is called."""
        draw = np.random.default_rng(seed_of("multimodal", part, self.name))
        count = max(1, round(self.share * count))
        if not self.modalities:
            return draw_text(self.kind, count, draw)
        if len(self.modalities) > 1:
            return draw_joint(sets, self.kind, part, count, draw)
        strength = self.degraded * DEGRADED
        return draw_rows(sets, self.modalities[0], part, [self.kind], count, draw, strength)


_EACH = tuple(SKILLS)
PROBES = (
    *(ModalityProbe("own", kind, (one,), share=0.25) for one in _EACH for kind in SHARED),
    *(ModalityProbe("skill", kind, (one,), share=0.5) for one, kind in SKILLS.items()),
    *(ModalityProbe("joint", kind, JOINT) for kind in ("sum", "same", "larger", "fit", "bird")),
    ModalityProbe("fused", "both", JOINT),
    *(ModalityProbe("degraded", "name", (one,), True, 0.5) for one in _EACH),
    *(
        ModalityProbe("moved", kind, (other,), share=0.25)
        for one, kind in SKILLS.items()
        for other in _EACH
        if other != one
    ),
    *(ModalityProbe("text", kind, (), share=0.25) for kind in ("sum", "same", "larger")),
)
GROUPS = tuple(dict.fromkeys(probe.group for probe in PROBES))
MEAN = ("own", "skill", "joint", "fused")
"""Groups whose mean is the score of a model; scales are tuned for it."""


def groups(scores: Mapping[str, float]) -> dict[str, float]:
    """Return group -> mean over its probes, as far as they were asked, and the mean over `MEAN`."""
    return group_means(scores, PROBES, MEAN)


def without(rows: Sequence[PromptRow], modality: str) -> list[PromptRow]:
    """Return the rows as a model of one modality sees them: inputs of others are left out."""
    seen = []
    for row in rows:
        text = row.prompt
        for other in set(row.inputs) - {modality}:
            text = text.replace(PLACEHOLDERS[other], "")
        seen.append(replace(row, prompt=text, inputs={modality: row.inputs[modality]}))
    return seen
