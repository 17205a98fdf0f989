"""What a merge method is: its options, its contract, and a fold over chunks of one tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from keyword import iskeyword
from typing import Any, Literal, TypeAlias

from submerge.algebra import Chunk, Reduction, Update
from submerge.deferred import torch

__all__ = [
    "REQUIRED",
    "Fold",
    "FoldPlan",
    "MatrixFold",
    "Merged",
    "Method",
    "Option",
    "Settings",
    "TensorSpec",
    "Values",
]


class _Required:
    """The default of an option that the recipe must give."""

    def __repr__(self) -> str:
        return "required"


REQUIRED = _Required()
"""The default of an option that has none: the recipe must give it."""

FACTOR = ("lambda", "scale")
"""What papers call the factor on the merged update: an option of either name is found by the other, too."""


@dataclass(frozen=True)
class Option:
    """One parameter of a method: its type, default, range and meaning.

    Attributes:
        name: as the recipe writes it.
        kind: `float`, `int`, `bool` or `str`.
        default: a value, or `REQUIRED`.
        help: its meaning, in half a sentence.
        scope: `"shared"`, one value for a tensor, or `"model"`, one for each model.
        low: the least number, inclusive.
        high: the largest number, inclusive.
        choices: the words that are allowed; empty for any text.
        tune: whether users usually must tune it.
        word: may stand in a number's place (`auto`).
        single: it says something about the whole model, and has one value for all tensors: no filter, no
            gradient.

    Examples:
        >>> from submerge.methods import Option
        >>> density = Option("density", float, 1.0, "share of the entries kept", scope="model", low=0, high=1)
        >>> density.check("2e-1")
        0.2
        >>> density.check(2)
        Traceback (most recent call last):
        ValueError: density must lie in [0, 1]; found 2
    """

    name: str
    kind: type[float] | type[int] | type[bool] | type[str]
    default: Any
    help: str
    scope: Literal["shared", "model"] = "shared"
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()
    tune: bool = False
    word: str = ""
    single: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that may be written for it: `lambda_`, too, for Python has its own use for `lambda`."""
        both = FACTOR if self.name in FACTOR and self.scope == "shared" else ()
        return tuple(
            dict.fromkeys(
                spelled
                for name in (self.name, *both)
                for spelled in (name, f"{name}_" if iskeyword(name) else name)
            )
        )

    def check(self, value: Any) -> Any:
        """Return `value` in the option's type; raise `ValueError` that says what is allowed."""
        if self.kind is bool:
            if not isinstance(value, bool):
                raise ValueError(f"{self.name} must be true or false, not {value!r}")
            return value
        if self.kind is str:
            if self.choices and value not in self.choices:
                raise ValueError(f"{self.name} must be one of {', '.join(self.choices)}; found {value!r}")
            return str(value)
        if self.word and value == self.word:
            return self.word
        wanted = f"a number or {self.word}" if self.word else "a number"
        if isinstance(value, bool):
            raise ValueError(f"{self.name} must be {wanted}, not {value!r}")
        try:
            number = float(value)  # YAML reads 1e-5 as a string
        except (TypeError, ValueError):
            raise ValueError(f"{self.name} must be {wanted}, not {value!r}") from None
        if self.kind is int and not number.is_integer():
            raise ValueError(f"{self.name} must be a whole number, not {value!r}")
        if not math.isfinite(number) or not self.low <= number <= self.high:
            raise ValueError(f"{self.name} must lie in [{self.low:g}, {self.high:g}]; found {value!r}")
        return int(number) if self.kind is int else number


@dataclass(frozen=True)
class TensorSpec:
    """The tensor that a fold is made for: its name, its shape, and how many updates there are.

    A `table` has two dimensions, and is no linear map: its rows are looked up, or are logits.

    Examples:
        >>> from submerge.methods import TensorSpec
        >>> TensorSpec("model.norm.weight", (64,), count=3).numel
        64
    """

    name: str
    shape: tuple[int, ...]
    count: int
    table: bool = False

    @property
    def numel(self) -> int:
        """How many elements the tensor has."""
        return math.prod(self.shape)


Values: TypeAlias = Mapping[str, Any]
"""An option's value for one tensor: a plain value, or (scope `model`) a list with one a model."""

Fold: TypeAlias = Callable[[Chunk], "torch.Tensor"]
"""Maps a chunk to the merged update of its elements, shape [n]; may overwrite `chunk.updates`."""

FoldPlan: TypeAlias = Generator[Reduction[Any, Any], Any, Fold]
"""Yields the reductions that it needs over the tensor, receives their results, returns the fold."""


@dataclass(frozen=True)
class Merged:
    """The merged update of one weight matrix, and figures about it for the report.

    `kept` is what the method's gate needs of the matrix at run time, by a name of the method's own.

    Examples:
        >>> import torch
        >>> from submerge.algebra import Dense
        >>> from submerge.methods import Merged
        >>> merged = Merged(Dense(torch.ones(3, 2)), {"rank": 1})
        >>> merged.update.shape, merged.figures
        ((3, 2), {'rank': 1})
    """

    update: Update
    figures: Mapping[str, Any] = field(default_factory=dict)
    kept: Mapping[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Keeps:
    """The most that a bank keeps of one update: bytes of `rank` triplets; rank None: of the whole update.

    `shared` bytes are kept besides, once for all updates of the tensor.

    Examples:
        >>> from submerge.methods import Keeps
        >>> Keeps(nbytes=4 * 2 * (64 + 1 + 64), rank=2).nbytes
        1032
    """

    nbytes: int
    rank: int | None = None
    shared: int = 0


Settings: TypeAlias = Callable[[Mapping[str, Any], Mapping[str, tuple[int, ...]], int], dict[str, Any]]
"""Maps the single options that a recipe gives, the tensors' shapes by name, and the number of models to the
gate's settings; refuses impossible ones with `RequestError`."""

MatrixFold: TypeAlias = Callable[[Sequence[Update], TensorSpec, Values], Merged]
"""Maps the models' updates of one weight matrix, in the recipe's order, to the merged update."""


@dataclass(frozen=True)
class Method:
    """A merge method: a fold over chunks, and for methods built on singular vectors one over matrices.

    Attributes:
        name: as recipes write it.
        title: as the papers write it.
        equation: what it computes, in plain text.
        source: the paper.
        use: when to take it, in a sentence.
        plan: gets the tensor and the resolved options, may refuse them with `RequestError` before its first
            reduction, and returns a fold, whose result is added to the origin.
        options: its parameters.
        matrix: merges the weight matrices whole, as `Update` objects. `plan` is then the rule for all other
            tensors (norms, biases, embeddings), and still checks the options of every tensor.
        both_sides: whether `matrix` decomposes Gram matrices of both sides of dense updates, and not of the
            short side alone.
        coefficients: of methods whose merged update is Σ c_t Δ_t with constants c_t, which keep low-rank
            updates low-rank.
        origin: what the updates are taken against: `"base"` (Δ_t = θ_t − θ_0; a base is required), `"zero"`
            (the weights themselves), or `"either"` (the base where the recipe names one).
        base_is_model: whether a base that the recipe names takes part as the first model.
        base_required: whether a recipe without a base is refused although the origin needs none.
        min_models: the fewest models that are merged.
        max_models: the most; None for any number.
        width: the run length that a chunk must hold a whole number of: 1 for element-wise folds.
        settings: of methods whose gate is kept. Then `matrix` gets every tensor, whatever its shape, and
            returns beside the update (the static fold) what a bank keeps for the run time.
        kept: bounds that for an update that is not zero, from its rank (0: not known).
        differs: where papers and other tools compute something else.

    Examples:
        >>> import submerge
        >>> from submerge.algebra import combine
        >>> from submerge.methods import Method, Option
        >>> def plan(spec, values):
        ...     yield from ()  # no reduction is needed
        ...     return lambda chunk: combine(chunk.updates, [values["scale"] / spec.count] * spec.count)
        >>> method = Method(
        ...     name="mean",
        ...     title="Mean update",
        ...     equation="θ = θ_0 + s/T Σ Δ_t",
        ...     source="an example",
        ...     use="Shows what a method is.",
        ...     plan=plan,
        ...     options=(Option("scale", float, 1.0, "factor s on the merged update", tune=True),),
        ... )
        >>> models = [{"model": "chat"}, {"model": "code"}]
        >>> recipe = {"merge_method": "mean", "base_model": "base", "models": models}
        >>> submerge.merge(submerge.load_recipe(recipe, methods={"mean": method}), "mean").tensors
        {'merge': 39}
    """

    name: str
    title: str
    equation: str
    source: str
    use: str
    plan: Callable[[TensorSpec, Values], FoldPlan]
    options: tuple[Option, ...] = ()
    matrix: MatrixFold | None = None
    both_sides: bool = False
    coefficients: Callable[[Values], Sequence[float]] | None = None
    origin: Literal["base", "zero", "either"] = "base"
    base_is_model: bool = False
    base_required: bool = False
    min_models: int = 1
    max_models: int | None = None
    width: Callable[[TensorSpec, Values], int] = lambda spec, values: 1
    settings: Settings | None = None
    kept: Callable[[TensorSpec, Values, int], Keeps] | None = None
    differs: str = ""

    @property
    def keeps(self) -> bool:
        """Whether a gate is kept: evaluated for each input, over a bank that the output holds."""
        return self.settings is not None

    @property
    def needs_base(self) -> bool:
        """Whether a recipe without `base_model` is refused."""
        return self.origin == "base" or self.base_required

    def option(self, name: str) -> Option | None:
        """Return the option that is written `name`, or None."""
        own = next((o for o in self.options if o.name == name), None)
        return own or next((o for o in self.options if name in o.names), None)
