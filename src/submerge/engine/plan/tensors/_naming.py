"""Models under the base's names, and what is to be said where they have not all of its tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec

from submerge.engine.plan.inputs import Inputs
from submerge.engine.plan.tensors._tensor import TensorPlan
from submerge.errors import Problem, counted, few
from submerge.names import layer_of, layer_stacks, with_layer
from submerge.store import Aligner, Alignment, Checkpoint, Restacker, layer_count

__all__ = ["align_models", "idle_models", "missing_tensors", "naming_warnings"]


def align_models(inputs: Inputs, *, of_any_depth: bool = False) -> tuple[list[Alignment], list[Problem]]:
    """Return each model with its tensors named as the reference has them, and what stands in the way.

    Models `of_any_depth` may have more layers than the reference, whose names go on from its last layer.
    """
    reference = inputs.reference_model
    aligner = Aligner(reference)
    streams = {own.stream for own in inputs.specialists if own.stream is not None}
    merged = {*inputs.participants, *streams} - {inputs.reference}

    def aligned(model: Checkpoint) -> Alignment:
        base = _as_deep(reference, model) if of_any_depth else reference
        return (aligner if base is reference else Aligner(base)).align(model)

    alignments = [
        aligned(model) if position in merged else Alignment(model)
        for position, model in enumerate(inputs.models)
    ]
    hint = "merge models of one base; if it is one, give its tensors the base's names"
    problems = [
        Problem(f"it is not taken for a model of this base: {line}", a.model.label, hint)
        for a in alignments
        for line in a.refused
    ]
    return alignments, problems


def _as_deep(reference: Checkpoint, model: Checkpoint) -> Checkpoint:
    """Return the reference with as many layers as a model has, if these are more: its last one again."""
    stacks, wanted = layer_stacks(reference.tensors), max(layer_stacks(model.tensors).values(), default=0)
    if len(stacks) != 1 or wanted <= (count := next(iter(stacks.values()))):
        return reference
    stack = next(iter(stacks))
    last = [name for name in reference.tensors if layer_of(name) == (stack, count - 1)]
    more = {with_layer(name, stack, layer): name for layer in range(count, wanted) for name in last}
    return Restacker().model(reference, {**{name: name for name in reference.tensors}, **more})


def missing_tensors(model: Checkpoint, base: Checkpoint, names: Sequence[str]) -> Problem:
    """Return the problem that a model lacks tensors of the base, with a hint that leads to a right result.

    The rule that takes them from the base is named only where that leaves most of the model, and where the
    model has no tensors in the same layers that may be the same ones under other names.
    """
    floats = {name: e.numel for name, e in base.tensors.items() if e.is_float}
    most = 2 * len(names) > len(floats) or 2 * sum(floats[n] for n in names) > sum(floats.values())
    layers = {layer_of(name) for name in names} - {None}
    others = [n for n in model.tensors if n not in base.tensors and layer_of(n) in layers]
    hint = "merge models of one base"
    if depths := _other_depth(model, base):
        hint += f"; {depths}"
    elif not most and not others:
        hint += ", or set rules: {missing: base} to use the base's values"
    elif find_spec("transformers") is None:
        hint += ' (with transformers more names are understood: pip install "submerge[models]")'
    elif others:
        hint += f"; it has others in the same layers that are not known to be the same: {few(others)}"
    else:
        hint += f"; this one has {len(floats) - len(names)} of its {len(floats)} tensors"
    return Problem(f"tensors are missing: {few(names)}", model.label, hint)


def _other_depth(model: Checkpoint, base: Checkpoint) -> str:
    """Return that two configurations name different numbers of layers; else an empty text."""
    own, theirs = layer_count(model.config), layer_count(base.config)
    if own is None or theirs is None or own == theirs:
        return ""
    return f"its config says {counted(own, 'layer')}, that of {base.label} {theirs}"


def idle_models(tensors: Sequence[TensorPlan], inputs: Inputs) -> list[Problem]:
    """Return a problem for each model of which no tensor would be merged: the rules let the base stand in."""
    what = "takes no part in the merge: all of its tensors would be the base's, by the rules"
    hint = "merge models of one base, or leave it out"
    idle = [
        inputs.models[index].label
        for place, index in enumerate(inputs.participants)
        if index != inputs.reference and _floats(tensors) and not _merged(tensors, inputs, place)
    ]
    return [Problem(what, label, hint) for label in dict.fromkeys(idle)]


def naming_warnings(
    tensors: Sequence[TensorPlan], inputs: Inputs, lacks: Sequence[Mapping[str, str]]
) -> list[str]:
    """Return of which models parts, or the most, are the base's.

    `lacks` has for each model the tensors of the base that it rightly has none for, with the reason.
    """
    base = inputs.reference_model
    warnings = []
    for place, index in enumerate(inputs.participants):
        model, absent = inputs.models[index], lacks[index]
        if absent:
            why = " or ".join(dict.fromkeys(absent.values()))
            what = (
                f"{len(absent)} tensors of {base.label} are {why}, and stay the base's ({few(list(absent))})"
            )
            warnings.append(f"{model.label}: {what}")
        if depths := _other_depth(model, base):
            warnings.append(f"{model.label}: {depths}; is it of this base?")
        merged, wanted = _merged(tensors, inputs, place), _floats(tensors) - len(absent)
        if 2 * merged < wanted:
            what = f"the rules take most of its tensors from the base, and {merged} of {wanted} are merged"
            warnings.append(f"{model.label}: {what}; is it of this base?")
    return list(dict.fromkeys(warnings))


def _floats(tensors: Sequence[TensorPlan]) -> int:
    """Return how many tensors a model may have a part in."""
    return sum(tensor.action in ("merge", "take_base") for tensor in tensors)


def _merged(tensors: Sequence[TensorPlan], inputs: Inputs, place: int) -> int:
    """Return how many tensors of the output the participant at `place` enters with one of that name."""
    index = inputs.participants[place]
    names = inputs.models[index].tensors
    return sum(t.action == "merge" and t.inputs[place].model == index and t.name in names for t in tensors)
