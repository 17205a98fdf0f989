"""A tokenizer that gets the tokens of others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from _tokenizers import BASE_TOKENS, fast_tokenizer, special
from submerge.engine.plan.tokens._model_tokens import ModelTokens, TokenFlags, stored_tokens
from submerge.engine.plan.tokens._output_tokenizer import PLAIN, extend_tokenizer, united_tokens
from submerge.errors import RequestError
from submerge.store import Tokenizer as TokenizerFiles

SPECIAL = TokenFlags()


def tokens(*plain: str, **added: TokenFlags) -> ModelTokens:
    texts = [*plain, *added]
    return ModelTokens({text: id_ for id_, text in enumerate(texts)}, added)


def test_pieces_come_first_and_then_added_tokens_model_by_model() -> None:
    own = tokens("a", "b")
    new, warnings = united_tokens(
        own, [("one", tokens("a", "c", x=SPECIAL)), ("two", tokens("d", y=SPECIAL))]
    )
    assert new == {"c": PLAIN, "d": PLAIN, "x": SPECIAL, "y": SPECIAL}
    assert list(new) == ["c", "d", "x", "y"]
    assert [line.split(":")[0] for line in warnings] == ["one", "two"]
    assert "'c'" in warnings[0]
    assert "become added tokens" in warnings[0]


def test_a_piece_that_another_model_has_added_is_added() -> None:
    new, warnings = united_tokens(tokens("a", "x"), [("one", tokens("a", x=SPECIAL))])
    assert new == {"x": SPECIAL}
    assert not warnings


def test_the_first_of_two_ways_to_treat_a_token_counts() -> None:
    stripped = TokenFlags(lstrip=True)
    new, [told] = united_tokens(
        tokens("a"), [("one", tokens("a", x=SPECIAL)), ("two", tokens("a", x=stripped))]
    )
    assert new == {"x": SPECIAL}
    assert told.startswith("two: 'x' treated as in an earlier model")


def saved(folder: Path, *added: AddedToken) -> TokenizerFiles:
    fast_tokenizer(added).save_pretrained(folder)
    return TokenizerFiles(folder, tuple(path.relative_to(folder) for path in folder.iterdir()))


def test_tokens_follow_those_that_are_there(tmp_path: Path) -> None:
    files = saved(tmp_path, *special("<own>"))
    own = stored_tokens(tmp_path)
    assert own.added["<own>"] == SPECIAL
    extended = extend_tokenizer(files, own, {"piece": PLAIN, "<new>": SPECIAL, "w3": SPECIAL})
    count = len(BASE_TOKENS) + 1
    assert extended.ids == {**own.ids, "piece": count, "<new>": count + 1}
    assert list(extended.added) == ["w3", "piece", "<new>"]
    backend = Tokenizer.from_str(extended.text)
    assert backend.encode("w1<new>w3 piece").ids == [4, count + 1, 6, count]
    assert backend.decode([4, count + 1, count]) == "w1 piece"


def test_a_token_that_no_text_is_cut_into_is_told(tmp_path: Path) -> None:
    """Special tokens are looked for first, and take a part of its text."""
    files, own = saved(tmp_path), stored_tokens(saved(tmp_path).folder)
    assert extend_tokenizer(files, own, {"a b": PLAIN, "<new>": SPECIAL}).unreached == ()
    assert extend_tokenizer(files, own, {"a b": PLAIN, " ": SPECIAL}).unreached == ("a b",)


def test_nothing_to_add_leaves_the_file(tmp_path: Path) -> None:
    files = saved(tmp_path)
    assert extend_tokenizer(files, stored_tokens(tmp_path), {}).text is None


def test_tokens_that_the_configuration_alone_names(tmp_path: Path) -> None:
    files = saved(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    decoder = {"16": {"content": "<late>", "special": True, "normalized": False}}
    path.write_text(json.dumps({**json.loads(path.read_text()), "added_tokens_decoder": decoder}))
    own = stored_tokens(tmp_path)
    assert own.ids["<late>"] == 16
    extended = extend_tokenizer(files, own, {"<new>": SPECIAL})
    assert (extended.ids["<late>"], extended.ids["<new>"]) == (16, 17)


def test_ids_with_a_hole_take_no_new_tokens(tmp_path: Path) -> None:
    files = saved(tmp_path)
    path = tmp_path / "tokenizer.json"
    table = json.loads(path.read_text())
    table["model"]["vocab"]["w12"] = 16
    path.write_text(json.dumps(table))
    with pytest.raises(RequestError, match="ids that others have"):
        extend_tokenizer(files, stored_tokens(tmp_path), {"<new>": SPECIAL})


def test_a_broken_file_is_told(tmp_path: Path) -> None:
    files = saved(tmp_path)
    own = stored_tokens(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text().replace("WordLevel", "WordLevels"))
    with pytest.raises(RequestError, match="tokenizers cannot read it"):
        extend_tokenizer(files, own, {"<new>": SPECIAL})


def test_a_tokenizer_of_an_older_form_is_loaded(tmp_path: Path) -> None:
    """As transformers loads it; what is written is a tokenizer.json."""
    files = saved(tmp_path / "fast")
    assert isinstance(PreTrainedTokenizerFast.from_pretrained(files.folder), PreTrainedTokenizerFast)
    older = tmp_path / "older"
    older.mkdir()
    (older / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\n##y\n")
    (older / "config.json").write_text(json.dumps({"model_type": "bert"}))
    own = stored_tokens(older)
    extended = extend_tokenizer(TokenizerFiles(older, (Path("vocab.txt"),)), own, {"<new>": SPECIAL})
    assert Tokenizer.from_str(extended.text).encode("they<new>", add_special_tokens=False).ids == [5, 6, 7]
