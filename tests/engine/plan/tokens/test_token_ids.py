"""The ids that configurations give to tokens, where tokens got other ids or are there no more."""

from __future__ import annotations

from submerge.engine.plan.tokens._token_ids import lost_token_ids, with_token_ids

CONFIG = {"pad_token_id": 0, "eos_token_id": [1, 2], "suppress_tokens": [0], "bos_token_id": None, "top_k": 0}
NOW = {0: None, 1: 5, 2: None}


def test_ids_follow_their_tokens_and_lost_ones_are_anothers_or_none() -> None:
    moved = {**CONFIG, "eos_token_id": [5]}
    assert with_token_ids(CONFIG, NOW) == {**moved, "pad_token_id": None, "suppress_tokens": None}
    instead = {"pad_token_id": 7, "eos_token_id": 9, "bos_token_id": 8}
    assert with_token_ids(CONFIG, NOW, instead) == {**moved, "pad_token_id": 7, "suppress_tokens": None}


def test_which_ids_are_lost() -> None:
    assert list(lost_token_ids(CONFIG, NOW)) == [
        ("pad_token_id", 0),
        ("eos_token_id", 2),
        ("suppress_tokens", 0),
    ]
