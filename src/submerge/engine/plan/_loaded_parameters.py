"""What a bank would hold of parameters that the loaded model has in another form than the files, or not.

transformers packs the experts of a layer into one parameter, renames others, and leaves out what a class has
no use for. A gate acts on parameters of the loaded model: this is decided before anything is merged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from submerge.engine.plan._bank_size import bank_bounds
from submerge.engine.plan._plan import MergePlan
from submerge.errors import Problem, few
from submerge.names import Shape, loadable_model, loaded_names, loading

__all__ = ["unplaced_projectors", "unplaced_updates"]


def unplaced_projectors(plan: MergePlan) -> list[Problem]:
    """Return a problem where projectors that are mixed have tensors that no parameter is loaded from."""
    if plan.projectors is None:
        return []
    reference = plan.inputs.reference_model
    model = loadable_model(reference.config)
    if model is None:
        return []
    loaded = loaded_names(model, plan.projectors.names)
    if lost := [name for name in plan.projectors.names if name not in loaded]:
        what = f"{type(model).__name__} has no parameters for tensors of the projector: {few(lost)}"
        hint = "use projectors that transformers loads, or write 'projectors: merged'"
        return [Problem(what, reference.label, hint)]
    return []


def unplaced_updates(plan: MergePlan) -> tuple[list[Problem], list[str]]:
    """Return why updates in the bank of a method's gate cannot be loaded, and warnings of those without use.

    A model that transformers does not know is not looked at. For a method without a gate transformers, which
    takes seconds to import, is not asked.
    """
    gate = plan.recipe.method.gate
    if gate is None:
        return [], []
    changed = [t.name for t in plan.tensors if any(b.nbytes for b in bank_bounds(plan, t).values())]
    shapes = {tensor.name: tensor.shape for tensor in plan.tensors}
    found = [_without_place(model, changed, shapes) for model in _loaded_models(plan)] if changed else []
    if not found:
        return [], []
    where = plan.inputs.reference_model.label
    packed, absent = (set.intersection(*sets) for sets in zip(*found, strict=True))
    refused = [name for name in changed if name in packed and not gate.assembles]
    refused += [name for name in changed if name in absent and name not in _ignored(plan, shapes)]
    if refused:
        what = f"transformers makes other parameters of tensors that the gate acts on: {few(refused)}"
        hint = "choose a method without a gate: tsv_m merges all tasks as mass does, for every input alike"
        return [Problem(what, where, hint)], []
    if ignored := [name for name in changed if name in absent]:
        what = f"{where}: transformers loads no parameters of {few(ignored)}"
        return [], [f"{what}; the checkpoint has them merged for all tasks, and the gate leaves them out"]
    return [], []


def _loaded_models(plan: MergePlan) -> list[Any]:
    """Return the models, without values, that the folder may be loaded as: the base's, or a task's."""
    configs = {
        str((model.config or {}).get("architectures")): model.config
        for model in (plan.inputs.reference_model, *(plan.models[index] for index in plan.participants))
    }
    return [model for model in map(loadable_model, configs.values()) if model is not None]


def _without_place(model: Any, names: list[str], shapes: Mapping[str, Shape]) -> tuple[set[str], set[str]]:
    """Return which tensors a model has other parameters for, and which it has none for."""
    lost = set(names) - loaded_names(model, names).keys()
    if not lost:
        return set(), set()
    made = {source for view in loading(model, shapes).views.values() for source in view.sources}
    return lost & made, lost - made


def _ignored(plan: MergePlan, shapes: Mapping[str, Shape]) -> frozenset[str]:
    """Return the tensors that the class of the output's own configuration has no place for."""
    model = loadable_model(plan.inputs.reference_model.config)
    return frozenset() if model is None else loading(model, shapes).ignored
