"""The value of each option for one tensor: by precedence, filters, and gradients over depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from submerge.errors import Problem, RequestError
from submerge.methods import REQUIRED, Option
from submerge.recipe._coefficients import WEIGHT
from submerge.recipe._recipe import Recipe
from submerge.recipe._rules import Rule, Setting, checked

__all__ = ["Resolved", "ResolvedValues", "resolve", "resolve_layers"]

_MEMO = 1 << 15  # distinct (rules, depth) pairs remembered for a recipe; a model has one depth a layer


@dataclass(frozen=True)
class Resolved:
    """An option's value for one tensor, and why: the place in the recipe, the filter, the gradient."""

    value: Any
    why: str


@dataclass(frozen=True)
class ResolvedValues:
    """Every option of the method for one tensor: a `Resolved`, or a list with one a participant."""

    options: Mapping[str, Resolved | list[Resolved]]

    def __getitem__(self, name: str) -> Resolved | list[Resolved]:
        return self.options[name]

    def values(self) -> dict[str, Any]:
        """Return the plain values, in the form that `Method.plan` takes."""
        return {
            name: value.value if isinstance(value, Resolved) else [own.value for own in value]
            for name, value in self.options.items()
        }


def resolve(recipe: Recipe, tensor: str, depth: float) -> ResolvedValues:
    """Return the value of each option for `tensor`, which lies at `depth` in [0, 1] of the model.

    The participant's own parameters come before the recipe's top-level ones, and those before the
    option's default; within each, the first rule whose filter is part of the tensor's name holds.
    A gradient v of n numbers gives, with x = depth·(n − 1) and i = ⌊x⌋, the number
    (1 − x + i)·v_i + (x − i)·v_{i+1}; a gradient of other values gives v_i.

    Raises `RequestError` where an option that must be given has no value for this tensor, or where a
    gradient meets a value that the option refuses (2.5 layers).
    """
    return _compiled(recipe).at(tensor, depth)


def resolve_layers(recipe: Recipe, tensor: str, depth: float, sources: Sequence[str]) -> ResolvedValues:
    """Return the value of each option where models give tensors of other layers than the output's.

    A model's own options go by the name that its tensor has in the model, one of `sources`; options that all
    models share go by `tensor`. Raises `RequestError` as `resolve` does.
    """
    shared = resolve(recipe, tensor, depth)
    own = [resolve(recipe, source, depth) for source in sources]
    return ResolvedValues(
        {
            name: [of_model[name][i] for i, of_model in enumerate(own)]  # type: ignore[index]  # a list, too
            if isinstance(value, list)
            else value
            for name, value in shared.options.items()
        }
    )


@lru_cache(maxsize=16)
def _compiled(recipe: Recipe) -> _CompiledRecipe:
    return _CompiledRecipe(recipe)


class _Chain:
    """The rules that one option meets, in their order; the default is what is left at their end."""

    def __init__(self, option: Option, settings: tuple[Setting, ...]) -> None:
        self.option = option
        self.rules: list[tuple[Rule, Setting]] = []
        places = [place for level in settings for place in level.places]
        for rule, setting in [(rule, place) for place in places for rule in place.rules]:
            self.rules.append((rule, setting))
            if rule.filter is None:
                break  # nothing behind a rule for every tensor is ever reached
        self.filters = [rule.filter for rule, _ in self.rules]
        self.has_gradient = any(rule.is_gradient for rule, _ in self.rules)

    def pick(self, tensor: str) -> int:
        """Return the index of the rule that holds for `tensor`; behind the last stands the default."""
        for i, pattern in enumerate(self.filters):
            if pattern is None or pattern in tensor:
                return i
        return len(self.filters)

    def resolved(self, index: int, depth: float) -> Resolved | Problem | None:
        """Return what rule `index` gives at `depth`; None where no rule and no default gives anything."""
        if index == len(self.rules):
            default = self.option.default
            return None if default is REQUIRED else Resolved(default, "default")
        rule, setting = self.rules[index]
        why = setting.path if rule.where.startswith(setting.path) else f"{setting.path} ({rule.where})"
        if rule.filter is not None:
            why += f", filter '{rule.filter}'"
        if not isinstance(rule.value, tuple):
            return Resolved(rule.value, why)
        why += f", gradient [{', '.join(_short(point) for point in rule.value)}] at depth {depth:.3f}"
        try:
            return Resolved(checked(self.option, _between(rule.value, depth)), why)
        except ValueError as error:
            return Problem(f"{error}, by {why}", rule.where, "use one value, or rules with filters")


class _CompiledRecipe:
    """A recipe's chains, shared where participants share them, and the values that were asked for before."""

    def __init__(self, recipe: Recipe) -> None:
        self.participants = recipe.participants
        self.chains: list[_Chain] = []
        self.layout: list[tuple[Option, int | list[int]]] = []
        self.memo: dict[tuple[object, ...], ResolvedValues] = {}
        indices: dict[tuple[str, tuple[int, ...]], int] = {}
        top = recipe.parameters

        def chain(option: Option, own: Mapping[str, Setting]) -> int:
            settings = tuple(level[option.name] for level in (own, top) if option.name in level)
            key = (option.name, tuple(map(id, settings)))
            if key not in indices:
                indices[key] = len(self.chains)
                self.chains.append(_Chain(option, settings))
            return indices[key]

        self.weights = _Weights(recipe) if recipe.weights_from else None
        for option in recipe.method.options:
            if self.weights is not None and option.name == WEIGHT:
                continue
            if option.scope == "shared":
                self.layout.append((option, chain(option, {})))
            else:
                self.layout.append(
                    (option, [chain(option, entry.parameters) for entry in recipe.participants])
                )
        self.has_gradient = any(chain.has_gradient for chain in self.chains)

    def at(self, tensor: str, depth: float) -> ResolvedValues:
        """Return the values for `tensor` at `depth`."""
        if not 0 <= depth <= 1:
            raise ValueError(f"depth must lie in [0, 1]; found {depth!r}")
        picks = tuple([chain.pick(tensor) for chain in self.chains])
        # tensors that meet the same rules at the same depth have the same values: a model has thousands of
        # tensors, and a recipe a handful of rules
        key = (picks, depth if self.has_gradient else None)
        values = self.memo.get(key)
        if values is None:
            values = self.resolved(tensor, picks, depth)
            if len(self.memo) >= _MEMO:
                self.memo.clear()
            self.memo[key] = values
        if self.weights is None:
            return values
        return ResolvedValues({WEIGHT: self.weights.at(tensor), **values.options})

    def resolved(self, tensor: str, picks: tuple[int, ...], depth: float) -> ResolvedValues:
        """Return the values for the rules that were picked, or raise with every problem at once."""
        results = [chain.resolved(pick, depth) for chain, pick in zip(self.chains, picks, strict=True)]
        problems = self.problems(tensor, results)
        if problems:
            raise RequestError(problems)
        values: list[Any] = results  # no problem and no None is among them any more
        return ResolvedValues(
            {
                option.name: values[place] if isinstance(place, int) else [values[index] for index in place]
                for option, place in self.layout
            }
        )

    def problems(self, tensor: str, results: Sequence[Resolved | Problem | None]) -> list[Problem]:
        """Return what is wrong with a tensor's values: the gradients that fail, then options without any."""
        problems = [
            Problem(f"{result.what}, for tensor {tensor}", result.where, result.hint)
            for result in results
            if isinstance(result, Problem)
        ]
        hint = "add a rule without a filter"
        for option, place in self.layout:
            if isinstance(place, int):
                if results[place] is None:
                    problems.append(Problem(f"no value of '{option.name}' for tensor {tensor}", "", hint))
                continue
            for entry, index in zip(self.participants, place, strict=True):
                if results[index] is None:
                    what = f"no value of '{option.name}' for tensor {tensor} of model {entry.model}"
                    problems.append(Problem(what, entry.where, hint))
        return problems


class _Weights:
    """The weights of a recipe without any in its parameters: from a file, or where calibration begins."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.coefficients = recipe, recipe.coefficients
        self.default = _default_weight(recipe)

    def at(self, tensor: str) -> list[Resolved]:
        """Return the weight of each participant for `tensor`, by the exact name of its module."""
        of_module = self.coefficients.of(tensor) if self.coefficients else {}
        why = self.recipe.weights_from
        weights = [
            Resolved(of_module[entry.adapter_name], why) if entry.adapter_name in of_module else self.default
            for entry in self.recipe.participants
        ]
        if None in weights:
            what = f"no value of '{WEIGHT}' for tensor {tensor}: {why} does not name its module"
            raise RequestError(Problem(what, "", "give its weight there as 'initial', beside 'coefficients'"))
        return [weight for weight in weights if weight is not None]


def _default_weight(recipe: Recipe) -> Resolved | None:
    """Return the weight of what coefficients do not name: `initial`, else the method's default, if any."""
    if recipe.coefficients is None:
        return Resolved(recipe.calibration_settings()["initial"], "initial, to be calibrated")
    if recipe.coefficients.initial is not None:
        return Resolved(recipe.coefficients.initial, f"{recipe.weights_from}, initial")
    option = recipe.method.option(WEIGHT)
    assert option is not None
    return None if option.default is REQUIRED else Resolved(option.default, "default")


def _between(points: tuple[Any, ...], depth: float) -> Any:
    """Return the value of a gradient at `depth`."""
    position = depth * (len(points) - 1)
    i = int(position)
    low, high = points[i], points[min(i + 1, len(points) - 1)]
    if isinstance(low, (bool, str)) or isinstance(high, str):
        return low
    mixed = (1 - (position - i)) * low + (position - i) * high
    return min(max(mixed, min(low, high)), max(low, high))  # rounding must not leave the range


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).lower() if isinstance(value, bool) else str(value)
