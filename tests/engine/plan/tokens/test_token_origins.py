"""Whose row a token has in each model's table."""

from __future__ import annotations

from typing import Any

import pytest

from submerge.engine.plan.tokens._token_origins import Origin, TokenOrigins, places
from submerge.recipe import TokenRow

IDS = {"a": 0, "b": 1, "new": 2, "both": 3}
BASE, CHAT, TOOL = 0, 1, 2
MODELS = {BASE: {"a": 0, "b": 1}, CHAT: {"b": 0, "a": 1, "new": 2, "both": 3}, TOOL: {"a": 0, "both": 1}}


def rows(position: int, **more: Any) -> list[Origin]:
    """Return the origin of each row of a model's table."""
    origins = TokenOrigins(**{"ids": IDS, "models": MODELS, "base": BASE, **more})
    return [
        tuple((model, row + step) for model, row in span.origin)
        for span in origins.of(position)
        for step in range(span.count)
    ]


def test_what_a_model_lacks_is_the_bases_or_the_owners_or_the_mean() -> None:
    owner, mean = ((CHAT, 2),), ((CHAT, 3), (TOOL, 1))
    assert rows(BASE) == [((BASE, 0),), ((BASE, 1),), owner, mean]
    assert rows(CHAT) == [((CHAT, 1),), ((CHAT, 0),), owner, ((CHAT, 3),)]
    assert rows(TOOL) == [((TOOL, 0),), ((BASE, 1),), owner, ((TOOL, 1),)]


def test_without_a_base_the_mean_is_that_of_all_that_have_the_token() -> None:
    assert rows(TOOL, base=None)[1] == ((BASE, 1), (CHAT, 0))


@pytest.mark.parametrize(
    ("rule", "of_base", "of_chat"),
    [
        (TokenRow("zero"), (), ((CHAT, 2),)),
        (TokenRow("zero", force=True), (), ()),
        (TokenRow("model", "chat"), ((CHAT, 2),), ((CHAT, 2),)),
        (TokenRow("model_token", "tool", token="a"), ((TOOL, 0),), ((CHAT, 2),)),
        (TokenRow("model_token", "tool", token_id=1, force=True), ((TOOL, 1),), ((TOOL, 1),)),
        (TokenRow(), ((CHAT, 2),), ((CHAT, 2),)),
    ],
)
def test_rules_for_a_token(rule: TokenRow, of_base: Origin, of_chat: Origin) -> None:
    more = {"rules": {"new": rule}, "positions": {"chat": CHAT, "tool": TOOL}}
    assert rows(BASE, **more)[2] == of_base
    assert rows(CHAT, **more)[2] == of_chat


def test_tokens_of_nobody_and_ids_without_a_token() -> None:
    ids = {"a": 0, "nobody": 2}
    origins = TokenOrigins(ids=ids, models=MODELS, base=BASE, holes={1: ((BASE, 1),)})
    assert origins.without_row == ["nobody"]
    assert rows(CHAT, ids=ids, holes={1: ((BASE, 1),)}) == [((CHAT, 1),), ((BASE, 1),), ()]


def test_a_rule_whose_model_lacks_the_token_is_told_with_its_line() -> None:
    rules = {
        "new": TokenRow("model", "tool", where="recipe.yaml:7"),
        "both": TokenRow("model_token", "chat", token="none", where="recipe.yaml:9"),
    }
    told = TokenOrigins(IDS, MODELS, BASE, rules, {"chat": CHAT, "tool": TOOL}).problems()
    assert [(problem.where, problem.what) for problem in told] == [
        ("recipe.yaml:7", "tool has no row for 'new'"),
        ("recipe.yaml:9", "chat has no row for 'none'"),
    ]


def test_where_rows_are_now() -> None:
    assert places(IDS, MODELS[CHAT]) == {0: 1, 1: 0, 2: 2, 3: 3}
    assert places({"b": 0}, MODELS[BASE]) == {0: None, 1: 0}
