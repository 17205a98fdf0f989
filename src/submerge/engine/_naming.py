"""Models under the base's names, and what is to be said where they have not all of its tensors."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from submerge.engine._tensor import TensorPlan
from submerge.errors import Problem, few
from submerge.store import Aligner, Alignment, Checkpoint

__all__ = ["align_models", "idle_models", "missing_tensors", "naming_warnings"]


def align_models(
    models: Sequence[Checkpoint], donor: int, participants: Sequence[int]
) -> tuple[list[Alignment], list[Problem]]:
    """Return each model with its tensors named as `models[donor]` has them, and what stands in the way."""
    aligner = Aligner(models[donor])
    merged = set(participants) - {donor}
    alignments = [aligner.align(m) if i in merged else Alignment(m) for i, m in enumerate(models)]
    hint = "merge models of one base"
    problems = [
        Problem(f"it is not merged under other names than its own: {line}", a.model.label, hint)
        for a in alignments
        for line in a.refused
    ]
    return alignments, problems


def missing_tensors(model: Checkpoint, names: Sequence[str], of: int) -> Problem:
    """Return the problem that a model lacks tensors of the base, which has `of` to be merged.

    The rule that takes them from the base is named only where that leaves most of the model.
    """
    hint = "merge models of one base"
    if 2 * len(names) <= of:
        hint += ", or set rules: {missing: base} to use the base's values"
    elif sys.modules.get("transformers") is None:
        hint += ' (with transformers more names are understood: pip install "submerge[models]")'
    else:
        hint += f"; this one has {of - len(names)} of its {of} tensors"
    return Problem(f"tensors are missing: {few(names)}", model.label, hint)


def idle_models(
    tensors: Sequence[TensorPlan], models: Sequence[Checkpoint], donor: int, participants: Sequence[int]
) -> list[Problem]:
    """Return a problem for each model of which nothing at all would be merged."""
    problems = []
    floats = [tensor for tensor in tensors if tensor.treatment in ("merge", "base")]
    for place, index in enumerate(participants):
        merged = (t.inputs[place] for t in floats if t.treatment == "merge")
        if index != donor and floats and not any(found.model == index for found in merged):
            what = "takes no part in the merge: all of its tensors would be the base's, by the rules"
            problems.append(Problem(what, models[index].label, "merge models of one base, or leave it out"))
    return list(dict.fromkeys(problems))


def naming_warnings(alignments: Sequence[Alignment], base: Checkpoint) -> list[str]:
    """Return which parts of the base a model has none of, so that they stay as they are."""
    return [
        f"{a.model.label}: {len(a.lacks)} tensors of {base.label} are {why}, and stay the base's"
        f" ({few(list(a.lacks))})"
        for a in alignments
        if a.lacks
        for why in [" or ".join(dict.fromkeys(a.lacks.values()))]
    ]
