"""Tokens of tokenizers that write them in different ways are the same where they stand for the same text."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE, Unigram, WordLevel, WordPiece
from transformers import PreTrainedTokenizerFast

from _vocabularies import bpe_tokenizer
from submerge.engine.plan.tokens._model_tokens import stored_tokens
from submerge.engine.plan.tokens._token_keys import TokenKeys, token_keys


def keys_of(folder: Path, tokenizer: PreTrainedTokenizerFast) -> TokenKeys:
    tokenizer.save_pretrained(folder)
    return token_keys(folder, stored_tokens(folder))


@pytest.fixture
def by_bytes(tmp_path: Path) -> TokenKeys:
    return keys_of(tmp_path / "bytes", bpe_tokenizer(("<|im_start|>", AddedToken("  ", special=False))))


@pytest.fixture
def by_spaces(tmp_path: Path) -> TokenKeys:
    vocabulary = ["<unk>", "<s>", "<eos>", "<0x0A>", "<0x41>", "▁", "▁the", "the", "é", "A", "▁A"]
    backend = Tokenizer(Unigram([(text, -float(n)) for n, text in enumerate(vocabulary)], 0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return keys_of(
        tmp_path / "spaces",
        PreTrainedTokenizerFast(
            tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="<eos>"
        ),
    )


@pytest.fixture
def by_words(tmp_path: Path) -> TokenKeys:
    texts = ["[UNK]", "[CLS]", "[SEP]", "the", "##he", "t", "##é", "##e", "##n"]
    backend = Tokenizer(WordPiece({text: id_ for id_, text in enumerate(texts)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return keys_of(
        tmp_path / "words",
        PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", sep_token="[SEP]"),
    )


def test_the_bytes_that_tokens_stand_for(
    by_bytes: TokenKeys, by_spaces: TokenKeys, by_words: TokenKeys
) -> None:
    ours = stored_tokens(by_bytes.folder).ids
    assert by_bytes.keys[ours["Ġthe"]] == b" the"
    assert by_bytes.keys[ours["Ċ"]] == b"\n"
    assert by_bytes.keys[ours["Ã"]] == b"\xc3"
    assert by_bytes.keys[ours["  "]] == b"  "  # an added token is written as it is
    assert by_bytes.keys[ours["<|im_start|>"]] == "<|im_start|>"
    assert by_bytes.roles == {"bos": "<s>", "eos": "</s>", "pad": "<pad>"}
    assert by_spaces.keys[6] == b" the"
    assert by_spaces.keys[3] == b"\n"
    assert by_spaces.keys[8] == "é".encode()
    assert by_spaces.ids[b"A"] == 9  # and not the byte
    assert (by_words.keys[3], by_words.keys[4]) == (b" the", b"he")


def test_special_tokens_are_found_by_text_and_else_by_role(by_bytes: TokenKeys, by_spaces: TokenKeys) -> None:
    ours, theirs = (stored_tokens(keys.folder).ids for keys in (by_bytes, by_spaces))
    assert by_bytes.find("<s>", by_spaces.roles) == ours["<s>"]
    assert by_bytes.find("<eos>", {}) == ours["<eos>"]  # a token of this text is there, too
    assert by_spaces.find("</s>", by_bytes.roles) == theirs["<eos>"]
    assert by_spaces.find("<|im_start|>", by_bytes.roles) is None
    assert by_spaces.find(b" the", by_bytes.roles) == theirs["▁the"]
    assert by_spaces.find(b"</s>", by_bytes.roles) is None


def test_pieces_are_those_of_the_own_tokenizer(
    by_bytes: TokenKeys, by_spaces: TokenKeys, by_words: TokenKeys
) -> None:
    def texts(keys: TokenKeys, key: bytes | str) -> list[bytes | str]:
        return [keys.keys[id_] for id_ in keys.pieces(key)]

    assert texts(by_bytes, b" the") == [b" the"]
    assert b"".join(map(bytes, texts(by_bytes, " thé".encode()))) == " thé".encode()  # type: ignore[arg-type]
    assert texts(by_bytes, b"\xff\xc3") == [b"\xff", b"\xc3"]  # no text
    assert texts(by_bytes, "<|new|>")[0] == b"<"
    assert texts(by_spaces, b" theA") == [b" the", b"A"]
    assert texts(by_spaces, b"\nq") == []  # nothing for q
    assert texts(by_words, b" then") == [b" the", b"n"]
    assert texts(by_words, b"\xff") == []


def test_a_tokenizer_of_whole_words_has_its_tokens_as_they_are(tmp_path: Path) -> None:
    backend = Tokenizer(WordLevel({"<unk>": 0, "the": 1, "Ġthe": 2}, unk_token="<unk>"))
    keys = keys_of(tmp_path, PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>"))
    assert keys.ids == {"<unk>": 0, b"the": 1, "Ġthe".encode(): 2}
    assert keys.pieces(b"the") == [1]
    assert keys.pieces(b"nothing") == []


def test_pieces_without_merges_are_letters(tmp_path: Path) -> None:
    backend = Tokenizer(BPE({"a": 0, "b": 1, "▁": 2, "<unk>": 3}, [], unk_token="<unk>"))
    keys = keys_of(tmp_path, PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>"))
    assert keys.style == "spaces"
    assert keys.pieces(b" ab") == [2, 0, 1]
