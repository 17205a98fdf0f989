"""Whose tokens the output has, and what rows they get."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from submerge.recipe._new_tokens import NewTokens

__all__ = ["TokenRow", "TokenizerSettings"]


@dataclass(frozen=True)
class TokenRow:
    """Where a model has the row of a token from that it lacks; with `force`, that it has, too.

    `kind` says what it is: `zero`, the row of this token in `model`, or that of another token of `model`
    (`model_token`), which `token` or `token_id` names. What follows from the models that have the token is
    the `default`. `where` is its line.
    """

    kind: Literal["default", "zero", "model", "model_token"] = "default"
    model: str = ""
    token: str | None = None
    token_id: int | None = None
    force: bool = False
    where: str = ""

    def written(self) -> dict[str, Any]:
        """Return the mapping that a recipe has."""
        token: dict[str, Any] = (
            {"token": self.token} if self.token_id is None else {"token_id": self.token_id}
        )
        sources: dict[str, Any] = {
            "zero": {"kind": "zero"},
            "model": self.model,
            "model_token": {"kind": "model_token", "model": self.model, **token},
        }
        source = {"source": sources[self.kind]} if self.kind in sources else {}
        return source | ({"force": True} if self.force else {})


@dataclass(frozen=True)
class TokenizerSettings:
    """Whose tokens the output has: `source` is None, `base`, `union` or the spec of a model.

    `tokens` are the rules for single tokens, by their texts; a tokenizer that lacks one gets it. The tables
    have a number of rows that is a multiple of `pad_to_multiple_of`. With `new_tokens` the source is a donor,
    whose tokenizer the models get in the place of their own. `where` is the source's line.
    """

    source: str | None = None
    tokens: Mapping[str, TokenRow] = field(default_factory=dict)
    pad_to_multiple_of: int | None = None
    new_tokens: NewTokens | None = None
    where: str = ""

    @property
    def is_open(self) -> bool:
        """Whether nothing is said of the output's tokens."""
        return self.source is None and not self.changes_tables

    @property
    def changes_tables(self) -> bool:
        """Whether tables change though all models have one vocabulary."""
        return bool(self.tokens) or self.pad_to_multiple_of is not None or self.new_tokens is not None

    def written(self) -> dict[str, Any]:
        """Return the keys that a recipe has."""
        if not self.changes_tables:
            return {"tokenizer_source": self.source}
        tokens = {text: row.written() for text, row in self.tokens.items()}
        section: dict[str, Any] = {"source": self.source, "tokens": tokens or None}
        section["pad_to_multiple_of"] = self.pad_to_multiple_of
        section["new_tokens"] = self.new_tokens and self.new_tokens.written()
        return {"tokenizer": {key: value for key, value in section.items() if value is not None}}
