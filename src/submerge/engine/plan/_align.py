"""Which tensors meet in each output tensor: the rules for missing, extra and odd ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from submerge.engine.plan._adapter_form import adapter_form
from submerge.engine.plan._gate import is_head
from submerge.engine.plan._inputs import Inputs
from submerge.engine.plan._naming import missing_tensors
from submerge.engine.plan._tables import is_matrix
from submerge.engine.plan._tensor import Input, TensorPlan
from submerge.errors import Problem, RequestError, few
from submerge.methods import GateSpec, TensorSpec
from submerge.recipe import Recipe, resolve
from submerge.store import (
    DTYPES,
    Checkpoint,
    LowRank,
    Part,
    TensorEntry,
    depths,
    dtype_named,
    is_relative,
    layer_of,
)

__all__ = ["plan_tensors"]


@dataclass
class _Findings:
    """Problems by what they say, so that the same one in 300 tensors is one line."""

    tensors: defaultdict[tuple[str, str, str], list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, what: str, where: str, hint: str, tensor: str) -> None:
        self.tensors[what, where, hint].append(tensor)

    def problems(self) -> list[Problem]:
        """Return one problem for each kind, naming the first tensors and counting the rest."""
        return [
            Problem(f"{what}: {few(names)}", where, hint)
            for (what, where, hint), names in self.tensors.items()
        ]


@dataclass
class _Planner:
    recipe: Recipe
    models: Sequence[Checkpoint]
    donor: int
    participants: Sequence[int]
    origin: bool
    depths: Mapping[str, float]
    lacks: Sequence[Mapping[str, str]]
    same: Mapping[str, str]
    findings: _Findings = field(default_factory=_Findings)
    missing: defaultdict[int, list[str]] = field(default_factory=lambda: defaultdict(list))

    @property
    def _gate(self) -> GateSpec | None:
        return self.recipe.method.gate

    def plan(self, entry: TensorEntry) -> TensorPlan | None:
        """Return what happens to one tensor of the donor, or None after noting a problem."""
        own = self._patched(Input(self.donor, entry), entry)
        if DTYPES[entry.dtype].kind != "float":
            return self._keep(own)
        dtype = dtype_named(self.recipe.out_dtype or self.recipe.dtype or entry.dtype) or entry.dtype
        if any(is_head(entry.name, one.head) for one in self.recipe.participants):
            why = "a head: each task keeps its own"
            return TensorPlan(entry.name, entry.shape, dtype, "take_base", None, (own,), None, {}, why)
        inputs = [self._find(model, entry) for model in self.participants]
        if any(i is None for i in inputs):
            return None
        found = [i for i in inputs if i is not None]
        odd = [i for i in found if i.entry.shape != entry.shape]
        if odd:
            why = self._why_base(odd[0], entry)
            return TensorPlan(entry.name, entry.shape, dtype, "take_base", None, (own,), None, {}, why)
        parameter = self.same.get(entry.name, entry.name)
        values = self._values(entry, parameter, len(found))
        if values is None:
            return None
        return TensorPlan(
            entry.name,
            entry.shape,
            dtype,
            "merge",
            self.recipe.method,
            tuple(found),
            own if self.origin else None,
            values,
            "; ".join(dict.fromkeys([*self._copy_note(entry), *(i.note for i in found if i.note)])),
            matrix=self._as_matrix(entry, parameter),
            table=len(entry.shape) == 2 and not self._is_matrix(entry, parameter),
            parameter=parameter,
        )

    def _why_base(self, odd: Input, entry: TensorEntry) -> str:
        """Return why a tensor is the base's, where a model has it in another shape."""
        label, shape = self.models[odd.model].label, list(odd.entry.shape)
        if self._gate and self._gate.own_heads:
            return f"each task keeps its own, for {label} has {shape}"
        if self._unheld(entry):
            rows = len(shape) == 2 and shape[1:] == list(entry.shape[1:])
            more = ": added tokens are not in it" if rows else ""
            return f"it has no place there, and {label} has {shape} for {list(entry.shape)}{more}"
        return f"rule shape: base, for {label} has {shape} and not {list(entry.shape)}"

    def _unheld(self, entry: TensorEntry) -> bool:
        """Return whether the output is an adapter, which has no place for a tensor of this kind."""
        if self.recipe.output.form != "adapter":
            return False
        adapters = [model.adapter for model in self.models if model.adapter is not None]
        if any(entry.name in adapter.whole or entry.name in adapter.parts for adapter in adapters):
            return False
        return not self._is_matrix(entry, self.same.get(entry.name, entry.name))

    def _as_matrix(self, entry: TensorEntry, parameter: str) -> bool:
        """Return whether the tensor is merged by the method's rule for matrices."""
        if self._gate and self._gate.every_tensor:
            return entry.numel > 0
        return self.recipe.method.matrix is not None and self._is_matrix(entry, parameter)

    def _is_matrix(self, entry: TensorEntry, parameter: str) -> bool:
        return is_matrix(parameter, entry.shape, self.models[self.donor].config)

    def _copy_note(self, entry: TensorEntry) -> list[str]:
        return [f"one parameter with {self.same[entry.name]}"] if entry.name in self.same else []

    def _keep(self, own: Input) -> TensorPlan:
        """An integer or boolean tensor: the donor's bytes, compared with every model's like tensor."""
        entry = own.entry
        others = [
            Input(model, other)
            for model in dict.fromkeys(self.participants)
            if model != self.donor
            and (other := self.models[model].tensors.get(entry.name)) is not None
            and (other.dtype, other.shape) == (entry.dtype, entry.shape)
        ]
        why = f"{entry.dtype} is not averaged: copied from {self.models[self.donor].label}"
        return TensorPlan(entry.name, entry.shape, entry.dtype, "copy", None, (own, *others), None, {}, why)

    def _find(self, model: int, entry: TensorEntry) -> Input | None:
        """Return where this model's part comes from: its own tensor, or the base's."""
        checkpoint = self.models[model]
        found = checkpoint.tensors.get(entry.name)
        if found is None:
            lacked = entry.name in self.lacks[model] or self._left_out(checkpoint, entry)
            if lacked or self.recipe.rules.missing == "base":
                why = f" ({reason})" if (reason := self.lacks[model].get(entry.name)) else ""
                return Input(self.donor, entry, f"{checkpoint.label}: missing, read from the base{why}")
            self.missing[model].append(entry.name)
            return None
        if DTYPES[found.dtype].kind != "float":
            what = f"tensors are {found.dtype} here and {entry.dtype} in {self.models[self.donor].label}"
            self.findings.add(what, checkpoint.label, "merge models of one base", entry.name)
            return None
        own = self._gate is not None and self._gate.own_heads
        may_differ = self.recipe.rules.shape == "base" or own or self._unheld(entry)
        if found.shape != entry.shape and not may_differ:
            hint = "merge models of one base, or set rules: {shape: base} to keep the base's tensor"
            what = f"shapes differ from {self.models[self.donor].label}'s"
            shapes = f"{entry.name} ({list(found.shape)}, there {list(entry.shape)})"
            self.findings.add(what, checkpoint.label, hint, shapes)
            return None
        tied = checkpoint.aliases.get(entry.name)
        note = f"{checkpoint.label}: tied to {tied}" if tied else ""
        return self._related(self._patched(Input(model, found, note), entry), entry)

    def _left_out(self, checkpoint: Checkpoint, entry: TensorEntry) -> bool:
        """Return whether a task has no use for a tensor: a pooler or a tower, beside layers that it has.

        Only a gate runs tasks apart, so that what one lacks is not missing in the others.
        """
        if not (self._gate and self._gate.partial_models):
            return False
        place, stacks = layer_of(entry.name), _stacks(checkpoint.tensors)
        shared = stacks & _stacks(self.models[self.donor].tensors)
        return bool(shared) and (place is None or place[0] not in stacks)

    def _patched(self, found: Input, entry: TensorEntry) -> Input:
        """Return the input with whether the model's adapter, if there is one, changes the tensor."""
        return replace(found, patch=self._part(found.model, entry) is not None)

    def _related(self, found: Input, entry: TensorEntry) -> Input:
        """Return the input as relative, where it is the origin with no more than a sum of an adapter's."""
        part = self._part(found.model, entry)
        sums = (part is None or is_relative(part)) and self._part(self.donor, entry) is None
        rank = part.rank if isinstance(part, LowRank) else 0
        return replace(found, relative=self.origin and found.entry is entry and sums, rank=rank)

    def _part(self, model: int, entry: TensorEntry) -> Part | None:
        adapter = self.models[model].adapter
        return adapter.parts.get(entry.name) if adapter else None

    def _values(self, entry: TensorEntry, parameter: str, count: int) -> dict[str, Any] | None:
        """Return the options for one tensor, after the method has had a chance to refuse them."""
        try:
            values = resolve(self.recipe, parameter, self.depths[parameter]).values()
            self.recipe.method.check(TensorSpec(entry.name, entry.shape, count), values)
            if self.recipe.output.form == "adapter" and self.recipe.method.coefficients:
                self.recipe.method.coefficients(values)
        except RequestError as error:
            for problem in error.problems:
                what = problem.what.replace(f" for tensor {entry.name}", "")
                where = "" if problem.where == f"tensor {entry.name}" else problem.where
                self.findings.add(what, where, problem.hint, entry.name)
            return None
        return values


def _stacks(names: Iterable[str]) -> set[str]:
    """Return the prefixes of all stacks of layers."""
    return {place[0] for name in names if (place := layer_of(name)) is not None}


def plan_tensors(
    recipe: Recipe, inputs: Inputs, lacks: Sequence[Mapping[str, str]], same: Mapping[str, str]
) -> tuple[list[TensorPlan], list[Problem]]:
    """Return what happens to each tensor of the reference, in its order, and all problems found.

    `inputs` are the models under the reference's names. A checkpoint has exactly the reference's tensors, an
    adapter those that a model changes; the rules of the recipe say what to do where a model lacks one or has
    another shape. `lacks` has for each model the tensors that it rightly has none for, with the reason, and
    `same` maps tensors to those that they are copies of.
    """
    models, reference = inputs.models, inputs.reference_model
    names = reference.tensors
    as_adapter = recipe.output.form == "adapter"
    on_base = recipe.base is not None and recipe.method.origin in ("base", "either")
    planner = _Planner(
        recipe,
        models,
        inputs.reference,
        inputs.participants,
        on_base or as_adapter,
        depths(names),
        lacks,
        same,
    )
    tensors = [plan for entry in names.values() if (plan := planner.plan(entry)) is not None]
    problems = [missing_tensors(models[m], reference, left) for m, left in planner.missing.items()]
    problems += planner.findings.problems()
    if not as_adapter or problems:
        return tensors, problems
    return adapter_form(tensors, inputs)
