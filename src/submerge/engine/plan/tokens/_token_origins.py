"""Which models' rows a token has in each model's table, by mergekit's rules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import TypeAlias

from submerge.deferred import np
from submerge.errors import Problem
from submerge.recipe import TokenRow

__all__ = ["Origin", "OriginSpan", "TokenOrigins", "places", "texts_by_id"]

Origin: TypeAlias = tuple[tuple[int, int], ...]
"""The rows, as (model, row), whose mean a row is; a row of zeros where there are none."""


@dataclass(frozen=True)
class OriginSpan:
    """Rows that follow each other: `count` of them, the first of `origin`, the next of the rows behind it."""

    origin: Origin
    count: int


@dataclass(frozen=True)
class TokenOrigins:
    """Tells where the row of each token comes from.

    Attributes:
        ids: the output's tokens with their ids.
        models: for the position of each model that is merged, the rows of its tokens, in the models' order.
        base: the position of the recipe's base, or None.
        rules: what the recipe says of single tokens; `positions` has the models that they name.
        holes: the rows of ids that no token has.
    """

    ids: Mapping[str, int]
    models: Mapping[int, Mapping[str, int]]
    base: int | None
    rules: Mapping[str, TokenRow] = field(default_factory=dict)
    positions: Mapping[str, int] = field(default_factory=dict)
    holes: Mapping[int, Origin] = field(default_factory=dict)

    def of(self, position: int) -> Iterator[OriginSpan]:
        """Yield where the rows of a model's table come from, in spans of rows that follow each other.

        A row is the model's own, or that of all that lack the token.
        """
        own = self.models[position]
        rows = np.array([-1 if text is None else own.get(text, -1) for text in self.texts], dtype=np.int64)
        rows[list(self._forced)] = -1
        # rows that are not its own are spans of their own: none of these numbers follows another
        steps = np.diff(np.where(rows < 0, -3 * np.arange(len(rows)) - 9, rows))
        starts = [0, *(np.flatnonzero(steps != 1) + 1).tolist(), len(rows)]
        for start, stop in pairwise(starts):
            row = int(rows[start])
            yield OriginSpan(((position, row),) if row >= 0 else self._shared(start), stop - start)

    @cached_property
    def texts(self) -> list[str | None]:
        """The output's tokens by their ids."""
        return texts_by_id(self.ids)

    @property
    def without_row(self) -> list[str]:
        """The tokens that no model has a row for, and for which the recipe names no source."""
        held = set[str]().union(*self.models.values())
        return [text for text in self.ids if text not in held and self._rule(text).kind == "default"]

    def problems(self) -> list[Problem]:
        """Return what is wrong with the rules for single tokens."""
        return [problem for text, rule in self.rules.items() for problem in self._problems(text, rule)]

    def _problems(self, text: str, rule: TokenRow) -> Iterator[Problem]:
        if rule.kind == "model" and text not in self.models[self.positions[rule.model]]:
            hint = "name a model that has the token, or {kind: model_token, …}"
            yield Problem(f"{rule.model} has no row for {text!r}", rule.where, hint)
        if rule.token is not None and rule.token not in self.models[self.positions[rule.model]]:
            yield Problem(f"{rule.model} has no row for {rule.token!r}", rule.where, "name its token")

    @cached_property
    def _forced(self) -> frozenset[int]:
        return frozenset(self.ids[text] for text, rule in self.rules.items() if rule.force)

    def _shared(self, id_: int) -> Origin:
        """Return the origin of a token's row in the models that lack it."""
        text = self.texts[id_]
        return self.holes.get(id_, ()) if text is None else self._of_rule(text)

    def _rule(self, text: str) -> TokenRow:
        return self.rules.get(text, TokenRow())

    def _of_rule(self, text: str) -> Origin:
        """Return what a recipe says of a token; else the base's row, or else the mean of all that have it."""
        rule = self._rule(text)
        if rule.kind == "zero":
            return ()
        if rule.kind != "default":
            position = self.positions[rule.model]
            row = rule.token_id
            if row is None:
                row = self.models[position][text if rule.token is None else rule.token]
            return ((position, row),)
        holders = [position for position, rows in self.models.items() if text in rows]
        if self.base in holders:
            holders = [self.base]
        return tuple((position, self.models[position][text]) for position in holders)


def places(ids: Mapping[str, int], own: Mapping[str, int]) -> dict[int, int | None]:
    """Return where each row of a model is in the output; None for a token that this lacks."""
    return {row: ids.get(text) for text, row in own.items()}


def texts_by_id(ids: Mapping[str, int]) -> list[str | None]:
    """Return tokens in the order of their ids; None at an id that no token has."""
    texts: list[str | None] = [None] * (max(ids.values(), default=-1) + 1)
    for text, id_ in ids.items():
        texts[id_] = text
    return texts
