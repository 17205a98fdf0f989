"""What happens to each tensor of the output: which models' tensors meet in it, or why it is not merged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from submerge.algebra import FusedLayout
from submerge.engine.plan.inputs import Inputs
from submerge.engine.plan.projectors import ProjectorPlan
from submerge.engine.plan.tensors._adapter_form import adapter_form
from submerge.engine.plan.tensors._findings import Finding, Findings
from submerge.engine.plan.tensors._members import Members
from submerge.engine.plan.tensors._tensor import Input, TensorPlan
from submerge.engine.plan.tensors._tensor_rules import TensorRules
from submerge.errors import Problem, RequestError, few
from submerge.methods import METHODS
from submerge.recipe import Recipe
from submerge.store import TensorEntry

__all__ = ["TensorPlanner", "plan_tensors"]


def plan_tensors(
    recipe: Recipe,
    inputs: Inputs,
    lacks: Sequence[Mapping[str, str]],
    copies: Mapping[str, str],
    projectors: ProjectorPlan | None = None,
) -> tuple[list[TensorPlan], list[Problem]]:
    """Return what happens to each tensor of the reference, in its order, and all problems found.

    `inputs` are the models under the reference's names. A checkpoint has exactly the reference's tensors, an
    adapter those that a model changes; the rules of the recipe say what to do where a model lacks one or has
    another shape. `lacks` has for each model the tensors that it rightly has none for, with the reason, and
    `copies` maps tensors to those that they are copies of. `projectors` are those whose outputs are mixed.
    """
    planner = TensorPlanner(TensorRules(recipe, inputs, copies, projectors), lacks)
    tensors = planner.plan_all()
    problems = planner.findings.problems(inputs)
    if recipe.output.form == "checkpoint" or problems:
        return tensors, problems
    return adapter_form(tensors, inputs)


@dataclass(frozen=True)
class TensorPlanner:
    """Plans the tensors of the reference one by one, and notes what is wrong with them."""

    rules: TensorRules
    lacks: Sequence[Mapping[str, str]]
    findings: Findings = field(default_factory=Findings)

    def plan_all(self) -> list[TensorPlan]:
        """Return the plans of all tensors that have no problem."""
        plans = [self.plan(entry) for entry in self.rules.inputs.reference_model.tensors.values()]
        return [plan for plan in plans if plan is not None]

    def plan(self, entry: TensorEntry) -> TensorPlan | None:
        """Return what happens to one tensor, or None after noting a problem; the first case decides."""
        if not entry.is_float:
            return self._copied(entry)
        if self.rules.is_task_head(entry):
            return self._taken_from_base(entry, "a head: each task keeps its own")
        if self.rules.projectors and self.rules.projectors.parts.in_encoder(entry.name):
            return self._taken_from_base(entry, "an encoder, which all projectors share")
        if self.rules.projectors and entry.name in self.rules.projectors.names:
            return self._mean_of_projectors(entry, self.rules.projectors)
        if masks := self._members.masks(entry):
            return self._taken_from_base(entry, f"a mask in {few(masks)}")
        members = self._members.of_all(entry)
        if members is None:
            return None
        if other := next((member for member in members if member.entry.shape != entry.shape), None):
            return self._taken_from_base(entry, self._why_base(other, entry))
        return self._merged(entry, members)

    @property
    def _members(self) -> Members:
        return Members(self.rules, self.lacks, self.findings)

    def _copied(self, entry: TensorEntry) -> TensorPlan | None:
        """Plan for an integer or boolean tensor: the reference's bytes, compared with every model's."""
        own, label = self._members.of_reference(entry), self.rules.inputs.reference_model.label
        alike = self._members.alike(entry)
        if alike is None:
            return None
        return TensorPlan(
            name=entry.name,
            shape=entry.shape,
            dtype=entry.dtype,
            action="copy",
            inputs=(own, *alike),
            why=f"{entry.dtype} is not averaged: copied from {label}",
        )

    def _taken_from_base(self, entry: TensorEntry, why: str) -> TensorPlan:
        return TensorPlan(
            name=entry.name,
            shape=entry.shape,
            dtype=self.rules.dtype(entry),
            action="take_base",
            inputs=(self._members.of_reference(entry),),
            why=why,
        )

    def _mean_of_projectors(self, entry: TensorEntry, projectors: ProjectorPlan) -> TensorPlan | None:
        """Plan for a tensor of a projector: the bank has each, and the checkpoint their mean."""
        mean = replace(self.rules.recipe, method=METHODS["linear"])  # of values, so that none is an update
        members = replace(self._members, rules=replace(self.rules, recipe=mean)).of_all(entry)
        if members is None:
            return None
        shares = {model: 1 / len(group.models) for group in projectors.groups for model in group.models}
        return TensorPlan(
            name=entry.name,
            shape=entry.shape,
            dtype=self.rules.dtype(entry),
            action="merge",
            method=mean.method,
            inputs=members,
            values={
                "weight": [shares.get(member, 0.0) for member in self.rules.inputs.participants],
                "normalize": True,
            },
            why=f"the mean of {len(projectors.groups)} projectors, whose outputs are mixed for each image",
            mixed=True,
        )

    def _why_base(self, other: Input, entry: TensorEntry) -> str:
        """Return why a tensor is the base's, where `other` is of another shape."""
        label, shape, wanted = self.rules.inputs.models[other.model].label, other.entry.shape, entry.shape
        if self.rules.own_heads:
            return f"each task keeps its own, for {label} has {list(shape)}"
        if self.rules.has_no_place(entry):
            more_rows = len(shape) == 2 and shape[1:] == wanted[1:]
            tokens = ": added tokens are not in it" if more_rows else ""
            return f"it has no place there, and {label} has {list(shape)} for {list(wanted)}{tokens}"
        return f"rule shape: base, for {label} has {list(shape)} and not {list(wanted)}"

    def _merged(self, entry: TensorEntry, members: tuple[Input, ...]) -> TensorPlan | None:
        """Plan for a tensor that the method merges; None after noting why it refuses the options."""
        try:
            values = self.rules.values(entry, len(members))
        except RequestError as error:
            for problem in error.problems:
                self.findings.add(_of_any_tensor(problem, entry.name))
            return None
        low_rank, fused = self.rules.keeps_low_rank(entry, values), self.rules.fused(entry, values)
        on_origin = self.rules.takes_updates or low_rank
        return TensorPlan(
            name=entry.name,
            shape=entry.shape,
            dtype=self.rules.dtype(entry),
            action="merge",
            method=self.rules.recipe.method,
            inputs=members,
            origin=self._members.of_reference(entry) if on_origin else None,
            values=values,
            why="; ".join(self._notes(entry, members, fused)),
            matrix=self.rules.by_matrix_rule(entry) or low_rank,
            table=len(entry.shape) == 2 and not self.rules.is_matrix(entry),
            parameter=self.rules.parameter(entry),
            compares=self.rules.compares(entry),
            has_streams=self.rules.has_streams(entry),
            fused=fused,
        )

    def _notes(self, entry: TensorEntry, members: Sequence[Input], fused: FusedLayout | None) -> list[str]:
        """Return what a tensor is a copy of, whose its rows are, and which members no model stores so."""
        parameter = self.rules.parameter(entry)
        copy = [] if parameter == entry.name else [f"one parameter with {parameter}"]
        by_tokens = entry.name in self.rules.inputs.reference_model.token_tables
        source = self.rules.recipe.tokenizer_source if by_tokens else None
        rows = [f"a row for each token (tokenizer source: {source})"] if source else []
        maps = [f"{few(fused.maps, 4)} one by one"] if fused else []
        return list(dict.fromkeys([*copy, *rows, *maps, *(member.note for member in members if member.note)]))


def _of_any_tensor(problem: Problem, name: str) -> Finding:
    """Return a method's problem without the tensor's name, so that it is told once for all tensors."""
    where = "" if problem.where == f"tensor {name}" else problem.where
    return Finding(problem.what.replace(f" for tensor {name}", ""), where, problem.hint, name)
