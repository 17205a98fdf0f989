"""Which tasks a suite may have: those that the base cannot do yet, and that a model can learn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.replication.scores import Scorer
from benchmarks.replication.specialists import Specialists
from benchmarks.replication.suite import Suite

__all__ = ["LEAST_GAIN", "MOST_SHARE", "Candidate", "admission", "markdown"]

MOST_SHARE, LEAST_GAIN = 0.8, 0.1
"""Of the individual model's score: what the base may have at most, and what it must lack at least."""


@dataclass(frozen=True)
class Candidate:
    """Validation scores of one task: of the base, and of the model that was trained for it."""

    task: str
    base: float
    individual: float

    @property
    def admitted(self) -> bool:
        """Say whether the base lacks enough of the individual model."""
        return self.base <= MOST_SHARE * self.individual and self.individual - self.base >= LEAST_GAIN


def admission(specialists: Specialists, device: str = "cpu") -> list[Candidate]:
    """Return all tasks of a trained suite, those with the smallest share of the base first."""
    scorer = Scorer(
        specialists.domain, specialists.splits, specialists.heads, specialists.cache.base, screen=0
    )
    base = specialists.base(device)
    candidates = []
    for task, folder in zip(specialists.tasks, specialists.models, strict=True):
        own = specialists.load(folder, device)
        scores = (scorer.score(model, "validation", task) for model in (base, own))
        candidates.append(Candidate(task, *scores))
    return sorted(candidates, key=lambda one: one.base / max(one.individual, 1e-9))


def markdown(suite: Suite, kinds: Mapping[str, list[Candidate]]) -> str:
    """Return a table for each kind of training."""
    lines = [
        f"# Admission: {suite.name}",
        "",
        f"Validation, seed 0. A task is admitted where the base has at most {MOST_SHARE:.0%} of the "
        f"individual model's score, and {100 * LEAST_GAIN:.0f} points less.",
    ]
    for kind, candidates in kinds.items():
        lines += [
            "",
            f"## {kind}",
            "",
            "| task | base | individual | share | gain | admitted |",
            "|---" * 6 + "|",
        ]
        for one in candidates:
            share, gain = one.base / max(one.individual, 1e-9), 100 * (one.individual - one.base)
            cells = [one.task, f"{one.base:.3f}", f"{one.individual:.3f}", f"{share:.0%}", f"{gain:+.1f}"]
            lines.append("| " + " | ".join([*cells, "yes" if one.admitted else "no"]) + " |")
    return "\n".join([*lines, ""])
