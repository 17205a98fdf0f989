"""The models of a merge, and what part each of them takes in it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from submerge.recipe import Recipe, same_model
from submerge.store import Checkpoint, split_spec

__all__ = ["Inputs", "Specialist", "TokenizerSource", "names_no_model"]


@dataclass(frozen=True)
class TokenizerSource:
    """The model that gives the output's tokenizer: how messages call it, and whether the recipe names it."""

    label: str
    model: Checkpoint
    named: bool = False


@dataclass(frozen=True)
class Specialist:
    """Where the parts of one specialist of a composed model are; `model` and `stream` are positions.

    Attributes:
        modality: its name.
        model: its encoder, its projector, and its language model with the adapter for text, which is merged.
        decoupled: whether text and the modality's tokens were trained with parameters of their own.
        stream: the same model with the adapter for the modality's tokens alone, or None where they run with
            the base's parameters, or (if not `decoupled`) with those of `model`.
        placeholder: how a prompt marks an input, as the recipe says.
        where: its line in the recipe.
    """

    modality: str
    model: int
    decoupled: bool = False
    stream: int | None = None
    placeholder: str = ""
    where: str = ""


@dataclass(frozen=True)
class Inputs:
    """The models of a merge; `base`, `reference` and `participants` are positions in `models`.

    They are no models, for these are replaced while tensors get the reference's names, and one may be there
    twice.

    Attributes:
        models: the distinct models.
        specs: how the recipe names each.
        base: the recipe's base, or None.
        reference: the model whose names, shapes, configuration and side files the output has: the base, or
            the first participant where there is none.
        participants: the models that are merged, in the method's order; one may stand there twice.
        tokenizer: where the output's tokenizer comes from; None for an adapter, which has no rows that tokens
            could name.
        specialists: of a composed model, in the order of the recipe.
        told_config: the configuration of a base that has none of its own here: of adapters alone nothing else
            of it is opened.
    """

    models: tuple[Checkpoint, ...]
    specs: tuple[str, ...]
    base: int | None
    reference: int
    participants: tuple[int, ...]
    tokenizer: TokenizerSource | None = None
    specialists: tuple[Specialist, ...] = ()
    told_config: Mapping[str, Any] | None = None

    @classmethod
    def of(
        cls, recipe: Recipe, opened: Mapping[str, Checkpoint], tokenizer: Checkpoint | None = None
    ) -> Inputs:
        """Return the inputs of a recipe, from its models by their specs, where the reference comes first.

        `tokenizer` is the source of the tokenizer where that is none of the models.
        """
        specs = tuple(opened)
        return cls(
            models=tuple(opened.values()),
            specs=specs,
            base=None if recipe.base is None else specs.index(recipe.base),
            reference=0,
            participants=tuple(specs.index(entry.model) for entry in recipe.participants),
            tokenizer=_tokenizer_source(recipe, opened, specs[0], tokenizer),
        )

    @property
    def reference_model(self) -> Checkpoint:
        """The model whose names, shapes, configuration and side files the output has."""
        return self.models[self.reference]

    @property
    def base_config(self) -> Mapping[str, Any] | None:
        """The reference's configuration, or what is told of it."""
        return self.reference_model.config or self.told_config

    def below(self, position: int) -> Checkpoint | None:
        """Return a model without its adapter: itself, or what the adapter lies on, if that was opened."""
        model = self.models[position]
        if model.adapter is None:
            return model
        return model.under or (None if self.base is None else self.models[self.base])

    @property
    def involved(self) -> dict[int, Checkpoint]:
        """The reference, and the models that are merged, by their positions."""
        return {i: self.models[i] for i in dict.fromkeys([self.reference, *self.participants])}

    def position(self, spec: str) -> int:
        """Return the position of the model that a spec names, in whatever spelling."""
        return [same_model(own) for own in self.specs].index(same_model(spec))

    def role(self, position: int) -> str:
        """Return what a model takes part as: base, merged, for a modality, or with its files only."""
        roles = ["base"] if position == self.base else []
        roles += ["merged"] if position in self.participants else []
        roles += ["modality"] if any(s.stream == position for s in self.specialists) else []
        return " and ".join(roles) or "files only"

    def unused(
        self, used: Collection[tuple[int, str]], positions: Iterable[int]
    ) -> dict[int, tuple[str, ...]]:
        """Return, for each of these positions, the model's tensors that are not among those used."""
        unused = {i: tuple(n for n in self.models[i].tensors if (i, n) not in used) for i in positions}
        return {i: names for i, names in unused.items() if names}

    def of_models(self, models: Sequence[Checkpoint]) -> Inputs:
        """Return the same inputs after each of their models was changed."""
        return replace(self, models=tuple(models))


def names_no_model(recipe: Recipe) -> bool:
    """Return whether the tokenizer is that of a model outside of the recipe's."""
    wanted = recipe.tokenizer_source
    if wanted in (None, "base", "union") or recipe.output.form == "adapter":
        return False
    specs = [*(entry.model for entry in recipe.models), *([recipe.base] if recipe.base else [])]
    known = {same_model(part) for spec in specs for part in (spec, *split_spec(spec, recipe.root)) if part}
    return same_model(wanted or "") not in known


def _tokenizer_source(
    recipe: Recipe, opened: Mapping[str, Checkpoint], reference: str, outside: Checkpoint | None
) -> TokenizerSource | None:
    """Return the model whose tokenizer is taken: also one that stands before or behind a `+` alone.

    Of a union it is the first model that has one.
    """
    if recipe.output.form == "adapter":
        return None
    wanted = recipe.tokenizer_source
    if wanted == "union":
        models = [opened[reference], *opened.values()]
        model = next((model for model in models if model.tokenizer.complete), opened[reference])
        return TokenizerSource(model.label, model, named=True)
    if wanted is None or wanted == "base":
        return TokenizerSource(opened[reference].label, opened[reference])
    if wanted in opened:
        return TokenizerSource(wanted, opened[wanted], named=True)
    for spec, model in opened.items():
        under, adapter = split_spec(spec, recipe.root)
        if adapter is not None and same_model(wanted) == same_model(adapter):
            return TokenizerSource(wanted, model, named=True)
        if adapter is not None and same_model(wanted) == same_model(under):
            return TokenizerSource(wanted, replace(model, adapter=None), named=True)
    if outside is None:
        raise ValueError(f"{wanted} was not opened")
    return TokenizerSource(wanted, outside, named=True)
