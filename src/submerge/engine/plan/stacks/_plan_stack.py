"""From the slices of a recipe to those of a plan: where each layer comes from, and what stands in the way."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any

from submerge.engine.plan.inputs import Inputs
from submerge.engine.plan.stacks._stack import SliceLayers, StackPlan
from submerge.errors import Problem, RequestError, few
from submerge.names import (
    depths,
    is_before_layers,
    is_further,
    layer_of,
    layer_stacks,
    module_of_each,
    with_layer,
)
from submerge.recipe import ModuleSlices, Recipe, Slice, same_model
from submerge.store import Checkpoint, ConfiguredLayer, Restacker, layer_count, with_layers

__all__ = ["as_models", "plan_stack"]


def as_models(recipe: Recipe, inputs: Inputs) -> tuple[Recipe, Inputs]:
    """Return a recipe of one slice with all layers of each model as a recipe of models; another as it is."""
    slices = [piece for module in recipe.stack for piece in module.slices]
    names = inputs.reference_model.tensors
    if len(slices) != 1 or None in module_of_each(names, [recipe.stack[0].name]).values():
        return recipe, inputs
    plain = recipe.of_slice(slices[0])
    specs = dict.fromkeys([*([plain.base] if plain.base else []), *(entry.model for entry in plain.models)])
    opened = {spec: inputs.models[inputs.position(spec)] for spec in specs}
    counts = {tuple(layer_stacks(model.tensors).values()) for model in opened.values()}
    ranges = {(source.start, source.stop) for source in slices[0].sources}
    if len(counts) > 1 or not _are_all_layers(ranges, counts.pop(), list(opened.values())):
        return recipe, inputs
    return plain, Inputs.of(plain, opened)


def _are_all_layers(
    ranges: Set[tuple[int, int | None]], counts: Sequence[int], models: Sequence[Checkpoint]
) -> bool:
    """Return whether ranges have all layers of models with these stacks.

    Files may have more layers than the configurations say: those that predict further tokens.
    """
    told = {layer_count(model.config) for model in models} if len(counts) == 1 else set()
    return ranges in ({(0, None)}, {(0, count) for count in counts}, {(0, count) for count in told})


def plan_stack(recipe: Recipe, inputs: Inputs, copies: Mapping[str, str]) -> StackPlan:
    """Return the slices of a recipe, over models that have the reference's names.

    `copies` maps tensors to those that they are copies of. Raises `RequestError` with everything that is
    wrong with the layers that the recipe names.
    """
    return _StackPlanner(recipe, inputs, copies).plan()


@dataclass
class _StackPlanner:
    """Plans the slices of a recipe one after another, and notes what is wrong with them."""

    recipe: Recipe
    inputs: Inputs
    copies: Mapping[str, str]
    problems: list[Problem] = field(default_factory=list)

    def plan(self) -> StackPlan:
        names = dict.fromkeys(name for model in self.inputs.models for name in model.tensors)
        owners = module_of_each(names, [module.name for module in self.recipe.stack])
        reference = self.inputs.reference_model
        if left := [name for name in reference.tensors if owners[name] is None]:
            hint = "add the modules that they are in, or 'default' for all others, with 'models' or 'slices'"
            self._note(f"no module has the tensors {few(left)}", self.recipe.stack[0].where, hint)
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
        stacks, stops = layer_stacks(own), {source.stop for p in module.slices for source in p.sources}
        if stops == {None} or (stops == {0} and not stacks):
            return [self._all_layers(module.slices[0], names)]
        if len(stacks) == 1 and stops != {0}:
            stack = next(iter(stacks))
            if unlike := _unlike_first(own, stack):
                what = f"{reference.label} counts {few(unlike)} as layer 0, which has nothing of layer 1"
                hint = (
                    "its layers cannot be told from its embeddings and its head: merge it whole (models: …)"
                )
                self._note(what, module.where, hint)
                return []
            return self._stacked(module, stack, names)
        if len(stacks) > 1:
            what = f"{reference.label} has several stacks of layers ({', '.join(stacks)})"
            hint = "name each under 'modules', with its own slices"
        elif stacks:
            what = "layer_range [0, 0] has no layer"
            hint = f"name layers of {next(iter(stacks))}, or list whole models there: 'models: …'"
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
        outside = [name for name in names if (layer_of(name) or ("",))[0] != stack and not is_further(name)]
        # a head that is tied to embeddings is one parameter with them, and merged where they are
        before = [name for name in outside if is_before_layers(self.copies.get(name, name))]
        behind = [name for name in outside if not is_before_layers(self.copies.get(name, name))]
        slices, first = [], 0
        for piece in module.slices:
            count = (piece.sources[0].stop or 0) - piece.sources[0].start
            starts = self._starts(piece, stack)
            is_first, is_last = piece is module.slices[0], piece is module.slices[-1]
            beside = [*(before if is_first else ()), *(behind if is_last else ())]
            own = {i: self._names(i, stack, (start, count, first), beside) for i, start in starts.items()}
            depth = {name: _depth(name, stack, first, count) for of in own.values() for name in of}
            slices.append(self._slice(piece, stack, first, count, starts, own, depth))
            first += count
        return slices

    def _starts(self, piece: Slice, stack: str) -> dict[int, int]:
        """Return the first layer of each model in a slice; of a base that is not listed it is the others'."""
        own = {self.inputs.position(source.entry.model): source for source in piece.sources}
        starts, length = {}, (piece.sources[0].stop or 0) - piece.sources[0].start
        for position in self._positions(piece):
            source = own.get(position, piece.sources[0])
            starts[position] = source.start
            model = self.inputs.models[position]
            count = _stack_sizes(model).get(stack, 0)
            if source.start + length > count:
                what = f"layer_range [{source.start}, {source.start + length}] is outside of {model.label}"
                self._note(what, source.entry.where, f"it has {count} layers: 0 to {count - 1}")
        return starts

    def _positions(self, piece: Slice) -> list[int]:
        """Return the models that a slice reads; the first names its tensors: the base, if it is read."""
        listed = [source.entry.model for source in piece.sources]
        takes_part = [entry.model for entry in piece.participants]
        base = [] if piece.base is None else [piece.base]
        if self.recipe.method.origin == "zero":
            base = [spec for spec in base if same_model(spec) in map(same_model, (*listed, *takes_part))]
        return list(dict.fromkeys(self.inputs.position(spec) for spec in (*base, *listed)))

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
            base=None if piece.base is None else self.inputs.position(piece.base),
            reference=next(iter(starts)),
            participants=tuple(self.inputs.position(entry.model) for entry in piece.participants),
        )
        recipe = self.recipe.of_slice(piece)
        return SliceLayers(stack, first, count, starts, recipe, inputs, sources, depth)

    def _check_shapes(self, slices: Sequence[SliceLayers]) -> None:
        """Note models whose layers have other shapes than the reference's: they do not fit on one another."""
        reference = self.inputs.reference_model
        unlike: defaultdict[int, list[str]] = defaultdict(list)
        for piece in slices:
            last = _stack_sizes(reference).get(piece.module, 1) - 1
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
        config: Mapping[str, Any] | None = reference.config
        counts = _stack_sizes(reference)
        for stack in dict.fromkeys(piece.module for piece in slices if piece.module):
            layers = list(_layers_of(stack, slices))
            if config is None or layers == [(self.inputs.reference, i) for i in range(counts[stack])]:
                continue
            sources = [(self.inputs.models[i].config, number) for i, number in layers]
            config = self._with_layers(config, stack, counts[stack], sources)
        return config

    def _with_layers(
        self, config: Mapping[str, Any], stack: str, count: int, sources: Sequence[ConfiguredLayer]
    ) -> Mapping[str, Any]:
        """Return a configuration with other layers of a stack, or as it was after noting why it has none."""
        where = f"{self.inputs.reference_model.label}/config.json"
        try:
            edited = with_layers(config, stack, count, sources)
        except ValueError as error:
            hint = "take layers in an order that its models have: dense ones, and then sparse ones"
            self._note(str(error), where, hint)
            return config
        if edited is None:
            what = f"it does not say that {stack} has {count} layers, and gets {len(sources)}"
            self._note(what, where, "write the number there, such as num_hidden_layers")
        return edited or config

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


def _unlike_first(names: Iterable[str], stack: str) -> list[str]:
    """Return the tensors of a stack's layer 0 if layer 1 has none of them: then it is no layer.

    So are embeddings in models that are one list of modules, such as Phi-1 was at first.
    """
    layers: dict[int, dict[str, str]] = {0: {}, 1: {}}
    for name in names:
        if (place := layer_of(name)) is not None and place[0] == stack and place[1] in layers:
            layers[place[1]][with_layer(name, stack, 0)] = name
    return list(layers[0].values()) if layers[1] and not layers[0].keys() & layers[1].keys() else []


def _stack_sizes(model: Checkpoint) -> dict[str, int]:
    """Return the number of layers of each stack of a model.

    Files may have more than the configuration says: layers that predict further tokens, behind all others.
    """
    counts, told = layer_stacks(model.tensors), layer_count(model.config)
    if len(counts) == 1 and told is not None:
        return {stack: min(count, told) for stack, count in counts.items()}
    return counts


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
