"""What a recipe says of the tokens of a donor's tokenizer."""

from __future__ import annotations

from typing import Any

import pytest

from submerge.errors import RequestError
from submerge.recipe import NewTokens, load_recipe, to_mergekit


def recipe(**tokenizer: Any) -> dict[str, Any]:
    return {"merge_method": "passthrough", "models": [{"model": "chat"}], "tokenizer": tokenizer}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("mean", NewTokens("mean")),
        ({"method": "omp"}, NewTokens("omp", 64)),
        ({"k": 8}, NewTokens("omp", 8)),
        ({"method": "zero"}, NewTokens("zero")),
    ],
)
def test_a_method_or_a_mapping(given: Any, expected: NewTokens) -> None:
    read = load_recipe(recipe(source="donor", new_tokens=given))
    assert read.tokenizer.new_tokens == expected
    assert load_recipe(read.resolved()).resolved() == read.resolved()
    assert to_mergekit(read) is None


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        ({"source": "union", "new_tokens": "omp"}, "name the donor as the source"),
        ({"new_tokens": "omp"}, "name the donor as the source"),
        ({"source": "donor", "new_tokens": ["omp"]}, "'new_tokens' is a method or a mapping, not a list"),
        ({"source": "donor", "new_tokens": "omq"}, "one of 'mean', 'omp', 'subword', 'zero'"),
        ({"source": "donor", "new_tokens": {"k": True}}, "k is a positive whole number, not true"),
        (
            {"source": "donor", "new_tokens": {"method": "mean", "k": 8}},
            "k is of the method omp",
        ),
        ({"source": "donor", "new_tokens": {"n": 3}}, "unknown key 'n'"),
        (
            {"source": "donor", "new_tokens": "zero", "tokens": {"a": None}},
            "leave 'tokens' or 'new_tokens' out",
        ),
    ],
)
def test_what_is_refused(tokenizer: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        load_recipe(recipe(**tokenizer))
