"""Layers that are stacked: which tensor of which model is merged into each tensor of the output.

A stack is a matter of names. Each model is taken as if its layers had the numbers that the output gives them
(`store.Restacker`): a layer that stands there twice has two names. Each slice then is a merge of its own, of
its sources under these names, with its own base, parameters and depth.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from submerge.engine.plan._align import TensorPlanner
from submerge.engine.plan._inputs import Inputs
from submerge.engine.plan._tensor import TensorPlan
from submerge.engine.plan._tensor_rules import TensorRules
from submerge.errors import Problem, RequestError, few
from submerge.names import depths, is_before_layers, layer_of, layer_stacks, module_of_each, with_layer
from submerge.recipe import ModuleSlices, Recipe, ResolvedValues, Slice, resolve_layers, same_model
from submerge.store import Checkpoint, Restacker, with_layers

__all__ = ["SliceLayers", "StackPlan", "as_models", "plan_stack"]


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
        used: defaultdict[int, set[str]] = defaultdict(set)
        for tensor in tensors:
            of_slice = self.of(tensor.name).sources
            for member in tensor.members:
                used[member.model].add(of_slice[member.model].get(member.entry.name, member.entry.name))
        unused = {
            i: tuple(name for name in self.originals.models[i].tensors if name not in used[i])
            for i in sorted(set(self.inputs.participants))
        }
        return {i: names for i, names in unused.items() if names}


def as_models(recipe: Recipe, inputs: Inputs) -> tuple[Recipe, Inputs]:
    """Return a recipe of one slice with all layers of each model as a recipe of models; another as it is."""
    slices = [piece for module in recipe.stack for piece in module.slices]
    if len(slices) != 1:
        return recipe, inputs
    plain = recipe.of_slice(slices[0])
    specs = dict.fromkeys([*([plain.base] if plain.base else []), *(entry.model for entry in plain.models)])
    opened = {spec: inputs.models[_position(inputs, spec)] for spec in specs}
    counts = {spec: layer_stacks(model.tensors) for spec, model in opened.items()}
    if len({tuple(count.items()) for count in counts.values()}) > 1:
        return recipe, inputs
    for source in slices[0].sources:
        stacks = counts[source.entry.model]
        if source.stop is not None and (source.start, [source.stop]) != (0, list(stacks.values())):
            return recipe, inputs
    return plain, Inputs.of(plain, opened)


def plan_stack(recipe: Recipe, inputs: Inputs) -> StackPlan:
    """Return the slices of a recipe, over models that have the reference's names.

    Raises `RequestError` with everything that is wrong with the layers that it names.
    """
    return _StackPlanner(recipe, inputs).plan()


def _position(inputs: Inputs, spec: str) -> int:
    """Return the position of the model that a spec names, in whatever spelling."""
    return [same_model(own) for own in inputs.specs].index(same_model(spec))


@dataclass
class _StackPlanner:
    """Plans the slices of a recipe one after another, and notes what is wrong with them."""

    recipe: Recipe
    inputs: Inputs
    problems: list[Problem] = field(default_factory=list)

    def plan(self) -> StackPlan:
        names = dict.fromkeys(name for model in self.inputs.models for name in model.tensors)
        owners = module_of_each(names, [module.name for module in self.recipe.stack])
        reference = self.inputs.reference_model
        if left := [name for name in reference.tensors if owners[name] is None]:
            hint = "add the modules that they are in, with 'models: …' or 'slices: …'"
            self._note(f"no module of the recipe has the tensors {few(left)}", "modules", hint)
        slices = [
            piece
            for module in self.recipe.stack
            for piece in self._module(module, [name for name, own in owners.items() if own == module.name])
        ]
        self._check_shapes(slices)
        config = self._config(slices) if not self.problems else None
        if self.problems:
            raise RequestError(list(dict.fromkeys(self.problems)))
        return self._stack_plan(slices, config)

    def _note(self, what: str, where: str, hint: str) -> None:
        self.problems.append(Problem(what, where, hint))

    def _module(self, module: ModuleSlices, names: list[str]) -> list[SliceLayers]:
        """Return the slices of one module, which has the tensors of these names."""
        reference = self.inputs.reference_model
        own = [name for name in names if name in reference.tensors]
        if not own:
            hint = f"tensors of {reference.label} are called {few(list(reference.tensors))}"
            self._note(f"there is no module {module.name!r}", module.where, hint)
            return []
        if module.slices[0].sources[0].stop is None:
            return [self._all_layers(module.slices[0], names)]
        stacks = layer_stacks(own)
        if len(stacks) == 1:
            return self._stacked(module, next(iter(stacks)), names)
        if stacks:
            what = f"{reference.label} has several stacks of layers ({', '.join(stacks)})"
            hint = "name each under 'modules', with its own slices"
        else:
            what, hint = f"the module {module.name!r} has no layers", "list whole models there: 'models: …'"
        self._note(what, module.where, hint)
        return []

    def _all_layers(self, piece: Slice, names: list[str]) -> SliceLayers:
        """Return a module whose layers keep their numbers."""
        positions = self._positions(piece)
        own = {i: {n: n for n in names if n in self.inputs.models[i].tensors} for i in positions}
        return self._slice(piece, "", 0, 0, dict.fromkeys(positions, 0), own, depths(names))

    def _stacked(self, module: ModuleSlices, stack: str, names: list[str]) -> list[SliceLayers]:
        """Return the slices of a module's stack, with the tensors before the layers in the first of them.

        Those behind the layers are in the last.
        """
        outside = [name for name in names if (layer_of(name) or ("",))[0] != stack]
        slices, first = [], 0
        for place, piece in enumerate(module.slices):
            count = (piece.sources[0].stop or 0) - piece.sources[0].start
            starts = self._starts(piece, stack)
            beside = [
                name
                for name in outside
                if (is_before_layers(name) and place == 0)
                or (not is_before_layers(name) and piece is module.slices[-1])
            ]
            own = {i: self._names(i, stack, (start, count, first), beside) for i, start in starts.items()}
            depth = {name: _depth(name, stack, first, count) for of in own.values() for name in of}
            slices.append(self._slice(piece, stack, first, count, starts, own, depth))
            first += count
        return slices

    def _starts(self, piece: Slice, stack: str) -> dict[int, int]:
        """Return the first layer of each model in a slice; of a base that is not listed it is the others'."""
        starts: dict[int, int] = {}
        for source in piece.sources:
            position = _position(self.inputs, source.entry.model)
            starts[position] = source.start
            model = self.inputs.models[position]
            count = layer_stacks(model.tensors).get(stack, 0)
            if source.stop is not None and source.stop > count:
                what = f"layer_range [{source.start}, {source.stop}] is outside of {model.label}"
                self._note(what, source.entry.where, f"it has {count} layers: 0 to {count - 1}")
        return {i: starts.get(i, piece.sources[0].start) for i in self._positions(piece)}

    def _positions(self, piece: Slice) -> list[int]:
        """Return the models that a slice reads; the first names its tensors: the base, if it is read."""
        listed = [source.entry.model for source in piece.sources]
        takes_part = [entry.model for entry in piece.participants]
        base = [] if piece.base is None else [piece.base]
        if self.recipe.method.origin == "zero":
            base = [spec for spec in base if same_model(spec) in map(same_model, (*listed, *takes_part))]
        return list(dict.fromkeys(_position(self.inputs, spec) for spec in (*base, *listed)))

    def _names(
        self, position: int, stack: str, layers: tuple[int, int, int], beside: Iterable[str]
    ) -> dict[str, str]:
        """Return a model's tensors in a slice by the output's names; `layers` are (start, count, first)."""
        start, count, first = layers
        model = self.inputs.models[position]
        names = {name: name for name in beside if name in model.tensors}
        for name in model.tensors:
            place = layer_of(name)
            if place is not None and place[0] == stack and start <= place[1] < start + count:
                names[with_layer(name, stack, first + place[1] - start)] = name
        return names

    def _slice(
        self,
        piece: Slice,
        stack: str,
        first: int,
        count: int,
        starts: Mapping[int, int],
        sources: Mapping[int, Mapping[str, str]],
        depth: Mapping[str, float],
    ) -> SliceLayers:
        inputs = replace(
            self.inputs,
            base=None if piece.base is None else _position(self.inputs, piece.base),
            reference=next(iter(starts)),
            participants=tuple(_position(self.inputs, entry.model) for entry in piece.participants),
        )
        recipe = self.recipe.of_slice(piece)
        return SliceLayers(stack, first, count, starts, recipe, inputs, sources, depth)

    def _check_shapes(self, slices: Sequence[SliceLayers]) -> None:
        """Note models whose layers have other shapes than the reference's: they do not fit on one another."""
        reference = self.inputs.reference_model
        unlike: defaultdict[int, list[str]] = defaultdict(list)
        for piece in slices:
            last = layer_stacks(reference.tensors).get(piece.module, 1) - 1
            for position, names in piece.sources.items():
                for name in names.values():
                    other = reference.tensors.get(_within(name, piece.module, last))
                    if other is not None and other.shape != self.inputs.models[position].tensors[name].shape:
                        unlike[position].append(name)
        for position, others in unlike.items():
            shown = few(list(dict.fromkeys(others)))
            what = f"tensors have other shapes than those of {reference.label}: {shown}"
            self._note(what, self.inputs.models[position].label, "stack layers of models of one size")

    def _config(self, slices: Sequence[SliceLayers]) -> Mapping[str, Any] | None:
        """Return the output's configuration: the reference's with the layers that each stack has."""
        reference = self.inputs.reference_model
        config, counts = reference.config, layer_stacks(reference.tensors)
        for stack in dict.fromkeys(piece.module for piece in slices if piece.module):
            layers = list(_layers_of(stack, slices))
            if config is None or layers == [(self.inputs.reference, i) for i in range(counts[stack])]:
                continue
            sources = [(self.inputs.models[i].config, number) for i, number in layers]
            edited = with_layers(config, stack, counts[stack], sources)
            if edited is None:
                what = f"it does not say that {stack} has {counts[stack]} layers, and gets {len(layers)}"
                hint = "write the number there, such as num_hidden_layers"
                self._note(what, f"{reference.label}/config.json", hint)
            config = edited or config
        return config

    def _stack_plan(self, slices: Sequence[SliceLayers], config: Mapping[str, Any] | None) -> StackPlan:
        """Return the plan with all models under the output's names."""
        names: list[dict[str, str]] = [{} for _ in self.inputs.models]
        for piece in slices:
            for position, own in piece.sources.items():
                names[position] |= own
        restacker = Restacker()
        models = [restacker.model(model, own) for model, own in zip(self.inputs.models, names, strict=True)]
        merged = dict.fromkeys(i for piece in slices for i in piece.inputs.participants)
        inputs = replace(self.inputs.of_models(models), participants=tuple(merged))
        return StackPlan(tuple(slices), inputs, self.inputs, config)


def _layers_of(stack: str, slices: Iterable[SliceLayers]) -> Iterator[tuple[int, int]]:
    """Yield for each layer of a stack the model that names its tensors, and the layer's number there."""
    for piece in slices:
        if piece.module == stack:
            start = piece.starts[piece.inputs.reference]
            yield from ((piece.inputs.reference, start + i) for i in range(piece.count))


def _depth(name: str, stack: str, first: int, count: int) -> float:
    """Return how deep a tensor lies in a slice, in [0, 1]; outside of the layers it lies at 0."""
    place = layer_of(name)
    if place is None or place[0] != stack:
        return 0.0
    return (place[1] - first) / (count - 1) if count > 1 else 1.0


def _within(name: str, stack: str, last: int) -> str:
    """Return the name of the same tensor in a layer that is not behind the last of a stack."""
    place = layer_of(name)
    if not stack or place is None or place[0] != stack:
        return name
    return with_layer(name, stack, min(place[1], last))
