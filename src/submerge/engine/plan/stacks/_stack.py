"""Layers that are stacked: which tensor of which model is merged into each tensor of the output.

A stack is a matter of names. Each model is taken as if its layers had the numbers that the output gives them
(`store.Restacker`): a layer that stands there twice has two names. Each slice then is a merge of its own, of
its sources under these names, with its own base, parameters and depth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from submerge.engine.plan.inputs import Inputs
from submerge.engine.plan.tensors import TensorPlan, TensorPlanner, TensorRules
from submerge.errors import Problem
from submerge.recipe import Recipe, ResolvedValues, resolve_layers
from submerge.store import Checkpoint

__all__ = ["SliceLayers", "StackPlan"]


@dataclass(frozen=True, eq=False)
class SliceLayers:
    """A slice as its tensors are planned: layers `first … first + count − 1` of the output.

    Attributes:
        module: the prefix of the stack; empty where all tensors of a module are merged as they are numbered.
        first: the number of its first layer in the output.
        count: how many layers it has.
        starts: the number of its first layer in each model, by the model's position.
        recipe: that of the slice.
        inputs: the models under the output's names; the base and the participants are the slice's.
        sources: by position, for each name of the output that of the model's tensor.
        depths: of each tensor in the slice, for gradients.
    """

    module: str
    first: int
    count: int
    starts: Mapping[int, int]
    recipe: Recipe
    inputs: Inputs
    sources: Mapping[int, Mapping[str, str]]
    depths: Mapping[str, float]

    @property
    def names(self) -> tuple[str, ...]:
        """The output's tensors that are merged by this slice, in the order of the model that names them."""
        return tuple(self.sources[self.inputs.reference])

    def options(self, name: str) -> ResolvedValues:
        """Return the value of each option for a tensor of the slice, whose models' own names filters see."""
        own = [self.sources[position].get(name, name) for position in self.inputs.participants]
        return resolve_layers(self.recipe, name, self.depths.get(name, 0.0), own)

    def plan(
        self, models: Sequence[Checkpoint], lacks: Sequence[Mapping[str, str]], copies: Mapping[str, str]
    ) -> tuple[list[TensorPlan], list[Problem]]:
        """Return what happens to the tensors of the slice, and all problems found.

        `models` are those of the inputs with all their layers, and `lacks` has for each the tensors that it
        rightly has none for, by its own names.
        """
        inputs = self.inputs.of_models(models)
        of_output = [
            {new: lacks[position][old] for new, old in names.items() if old in lacks[position]}
            for position, names in ((i, self.sources.get(i, {})) for i in range(len(models)))
        ]
        planner = TensorPlanner(TensorRules(self.recipe, inputs, copies, options=self.options), of_output)
        plans = [planner.plan(inputs.reference_model.tensors[name]) for name in self.names]
        return [plan for plan in plans if plan is not None], planner.findings.problems(inputs)


@dataclass(frozen=True, eq=False)
class StackPlan:
    """The slices of an output, and its configuration.

    `inputs` are the models under the output's names, and `originals` the same under those of the reference.
    """

    slices: tuple[SliceLayers, ...]
    inputs: Inputs
    originals: Inputs
    config: Mapping[str, Any] | None

    @cached_property
    def _slice_of(self) -> dict[str, SliceLayers]:
        return {name: piece for piece in self.slices for name in piece.names}

    def of(self, tensor: str) -> SliceLayers:
        """Return the slice that a tensor of the output is merged by."""
        return self._slice_of[tensor]

    def plan(
        self, lacks: Sequence[Mapping[str, str]], copies: Mapping[str, str]
    ) -> tuple[list[TensorPlan], list[Problem]]:
        """Return what happens to each tensor of the output, and all problems found."""
        tensors, problems = [], []
        for piece in self.slices:
            planned, refused = piece.plan(self.inputs.models, lacks, copies)
            tensors += planned
            problems += refused
        return tensors, list(dict.fromkeys(problems))

    def unused(self, tensors: Sequence[TensorPlan]) -> dict[int, tuple[str, ...]]:
        """Return, for each model, its tensors that no output reads, by its own names."""
        used: set[tuple[int, str]] = set()
        for tensor in tensors:
            of_slice = self.of(tensor.name).sources
            for member in tensor.members:
                name = member.entry.name
                used.add((member.model, of_slice[member.model].get(name, name)))
        return self.originals.unused(used, sorted(set(self.inputs.participants)))
