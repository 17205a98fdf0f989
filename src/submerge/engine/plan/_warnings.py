"""What is legal in a merge, and yet worth a look before it is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from submerge.engine.plan._beside_warnings import beside_warnings, short
from submerge.engine.plan.composition import Composition
from submerge.engine.plan.inputs import Inputs
from submerge.engine.plan.projectors import ProjectorPlan
from submerge.engine.plan.tensors import GatePlan, TensorPlan
from submerge.errors import few
from submerge.names import is_fused, without_training
from submerge.store import BANK, DTYPES, MANIFEST, unlike_computation

__all__ = [
    "fused_warnings",
    "input_warnings",
    "of_unknown_layout",
    "rounding_warnings",
    "shape_warnings",
    "unused_tensors",
]


def unused_tensors(
    inputs: Inputs,
    tensors: Sequence[TensorPlan],
    gate: GatePlan | None,
    composition: Composition | None = None,
    projectors: ProjectorPlan | None = None,
) -> dict[int, tuple[str, ...]]:
    """Return, for each model that is merged, its tensors that no output reads.

    Encoders that all projectors share are the base's, and those of the models are the same.
    """
    used = {(member.model, member.entry.name) for tensor in tensors for member in tensor.members}
    for task in gate.tasks if gate else ():
        used.update((task.model, name) for name in task.head)
    for own in composition.specialists if composition else ():
        used.update((own.specialist.model, name) for name in own.modules)
    if projectors is not None:
        shared = list(filter(projectors.parts.in_encoder, inputs.reference_model.tensors))
        used.update((index, name) for index in inputs.participants for name in shared)
    return inputs.unused(used, sorted(set(inputs.participants)))


def input_warnings(
    inputs: Inputs, unused: Mapping[int, Sequence[str]], tensors: Sequence[TensorPlan]
) -> list[str]:
    """Return what is copied unmerged, what has no place in the output, and which types the models have."""
    return [
        *_copied_subfolders(inputs),
        *_named_by_training(inputs),
        *_without_gate(inputs),
        *_without_place(inputs, unused, {tensor.name for tensor in tensors}),
        *_model_types(inputs),
        *_unlike_computation(inputs),
        *_running_statistics(tensors),
        *beside_warnings(inputs),
    ]


def _copied_subfolders(inputs: Inputs) -> list[str]:
    reference = inputs.reference_model
    if not reference.other_weights:
        return []
    copied = ", ".join(str(path) for path in reference.other_weights[:3])
    what = f"the weights in its subfolders are copied, not merged ({copied})"
    return [f"{reference.label}: {what}; a recipe that names these folders merges them"]


def _named_by_training(inputs: Inputs) -> list[str]:
    """Return that the output gets names which hold words of a training program, as the reference's do."""
    reference = inputs.reference_model
    wrapped = [name for name in reference.tensors if without_training(name) != name]
    if not wrapped:
        return []
    what = f"{len(wrapped)} of its tensors have names that training put words in ({few(wrapped)})"
    hint = "the output has them, too, and transformers loads nothing of these: save that model unwrapped"
    return [f"{reference.label}: {what}; {hint}, or name one that is as the base, or first"]


def _without_gate(inputs: Inputs) -> list[str]:
    """Return which models are results of merges with a gate, of which the checkpoint alone is read."""
    what = f"its gate and {BANK} are left out: what is merged is the checkpoint beside them"
    models = {model.label: model.path for model in inputs.involved.values()}
    return [
        f"{label}: {what}"
        for label, path in models.items()
        if all((path / name).is_file() for name in (BANK, MANIFEST))
    ]


def _without_place(inputs: Inputs, unused: Mapping[int, Sequence[str]], written: set[str]) -> list[str]:
    """Return which models have tensors under names that the output does not have."""
    warnings = []
    for index, names in unused.items():
        left = [name for name in names if name not in written]
        if left:
            shown = ", ".join(left[:3]) + (", …" if len(left) > 3 else "")
            what = f"{len(left)} of its tensors have no place in the output ({shown})"
            warnings.append(f"{inputs.models[index].label}: {what}")
    return warnings


def _model_types(inputs: Inputs) -> list[str]:
    if inputs.specialists:  # each of a class of its own
        return []
    configs = [inputs.models[index].config for index in inputs.participants]
    types = {config.get("model_type") for config in configs if config}
    if len(types) < 2:
        return []
    return [f"the configs name different model types: {', '.join(sorted(map(str, types)))}"]


def _unlike_computation(inputs: Inputs) -> list[str]:
    """Return which models compute otherwise than the output will, as their configurations say."""
    if inputs.specialists:
        return []
    reference = inputs.reference_model
    warnings = []
    for index in inputs.participants:
        model = inputs.models[index]
        unlike = unlike_computation(model.config, reference.config)
        if unlike:
            shown = few([f"{key} {short(own)} and not {short(base)}" for key, (own, base) in unlike.items()])
            what = f"its weights were trained with {shown}, as its config says; the output computes as"
            warnings.append(f"{model.label}: {what} {reference.label}")
    return list(dict.fromkeys(warnings))


def _running_statistics(tensors: Sequence[TensorPlan]) -> list[str]:
    """Return that the statistics of batch norms are merged, which are of the models' own activations."""
    names = [
        tensor.name
        for tensor in tensors
        if tensor.action == "merge"
        and len(tensor.members) > 1
        and tensor.name.endswith(("running_mean", "running_var"))
    ]
    if not names:
        return []
    what = "running statistics of batch norms are merged as weights, and are not those of the merged model"
    hint = "pass some inputs through it in training mode before use (torch.optim.swa_utils.update_bn)"
    return [f"{few(names)}: {what}: {hint}"]


def rounding_warnings(inputs: Inputs, tensors: Sequence[TensorPlan], dtype: str | None) -> list[str]:
    """Return which models have more digits than the output, where the recipe gives that no `dtype`."""
    rounded: dict[tuple[int, str, str], int] = {}
    for tensor in tensors if dtype is None else ():
        written = DTYPES[tensor.dtype]
        wide = [member for member in tensor.inputs if DTYPES[member.entry.dtype].is_wider(written)]
        for member in wide if tensor.action == "merge" else ():
            key = member.model, member.entry.dtype, tensor.dtype
            rounded[key] = rounded.get(key, 0) + 1
    return [
        f"{inputs.models[model].label}: {count} of its tensors are {found}, and are rounded to {written}, "
        f"as the base has them; say dtype: {DTYPES[found].name} to keep what that loses"
        for (model, found, written), count in rounded.items()
    ]


def shape_warnings(inputs: Inputs, tensors: Sequence[TensorPlan], *, as_adapter: bool) -> list[str]:
    """Return what became of tensors that a model has in another shape than the base."""
    reasons: dict[str, list[str]] = {}
    for tensor in tensors:
        if tensor.action == "take_base":
            reasons.setdefault(tensor.why, []).append(tensor.name)
    taken = f"taken from {inputs.reference_model.label} as it is"
    done = "not in the adapter" if as_adapter else taken
    return [f"{few(names)}: {done} ({why})" for why, names in reasons.items()]


def of_unknown_layout(tensors: Sequence[TensorPlan]) -> list[str]:
    """Return the matrices that are fused by their names, and merged as one: their layout is not known."""
    return [
        tensor.name
        for tensor in tensors
        if tensor.matrix
        and tensor.is_changed
        and tensor.values.get("fused") == "split"
        and tensor.fused is None
        and is_fused(tensor.name)
    ]


def fused_warnings(inputs: Inputs, tensors: Sequence[TensorPlan]) -> list[str]:
    """Return which fused matrices are merged as one, and why."""
    whole = of_unknown_layout(tensors)
    kind = (inputs.base_config or {}).get("model_type")
    why = f"in a model of type {kind}" if kind else "without the base's config.json: name it as base_model"
    what = f"each merged as one matrix, for which rows are whose is not known {why}"
    return [f"{few(whole)}: {what}"] if whole else []
