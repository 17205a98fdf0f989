"""Tokenizers as their files say, whatever the model beside them is."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from submerge.errors import RequestError
from submerge.store import load_tokenizer

transformers = pytest.importorskip("transformers")


def test_the_file_says_how_texts_are_cut(tmp_path: Path) -> None:
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "two": 1, "words": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(tmp_path)
    transformers.Qwen2Config().save_pretrained(tmp_path)  # a kind with a class for its tokenizer
    loaded = load_tokenizer(tmp_path)
    assert loaded.tokenize("two words") == ["two", "words"]
    assert len(loaded) == 3


def test_a_broken_file(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(RequestError, match="cannot load the tokenizer"):
        load_tokenizer(tmp_path)
