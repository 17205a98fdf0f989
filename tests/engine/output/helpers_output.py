"""Tiny models to plan over, and an output that is begun."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from _models import Family, perturbed, state, write
from submerge.engine import MergePlan
from submerge.engine.output import Output

__all__ = ["make_family", "output_of"]

SHAPES = {f"model.layers.{i}.weight": (6, 5) for i in range(4)} | {"model.norm.weight": (5,)}


def make_family(root: Path) -> Family:
    """Return a base and two fine-tunes of five tensors."""
    base = state(SHAPES)
    tuned = tuple(write(root / f"tuned{i}", perturbed(base, i)) for i in range(2))
    return Family(write(root / "base", base), tuned, "Toy")


@contextmanager
def output_of(plan: MergePlan, out: Path, *, resume: bool = False) -> Iterator[Output]:
    """Yield the unfinished folder of a merge, whose journal is open."""
    output = Output(plan, out, resume=resume, overwrite=False)
    try:
        yield output
    finally:
        output.journal.close()
