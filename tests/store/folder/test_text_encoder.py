"""Texts as tokens: what transformers makes of them, with it and without."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from _models import quiet_transformers
from _tokenizers import fast_tokenizer, special
from submerge.errors import RequestError
from submerge.store import text_encoder

TEXTS = ["w1 w2 w12", "", "w3 </s> w4", "unknown w0", "<new> w5"]


def expected(folder: Path) -> list[list[int]]:
    tokenizer = quiet_transformers().PreTrainedTokenizerFast.from_pretrained(folder)
    first = tokenizer.bos_token or ""
    return [tokenizer(first + text, add_special_tokens=False)["input_ids"] for text in TEXTS]


def encoded(folder: Path) -> list[list[int]]:
    encode = text_encoder(folder)
    return [encode(text) for text in TEXTS]


@pytest.mark.parametrize("edit", ["", "no bos", "added in the settings", "cut", "no settings"])
def test_tokens_are_those_of_transformers(edit: str, tmp_path: Path) -> None:
    fast_tokenizer(special("<new>")).save_pretrained(tmp_path)
    settings, file = tmp_path / "tokenizer_config.json", tmp_path / "tokenizer.json"
    if edit == "no bos":
        settings.write_text(json.dumps(json.loads(settings.read_text()) | {"bos_token": None}))
    elif edit == "added in the settings":
        more = {"16": {"content": "<new>", "special": True, "normalized": False}}
        fast_tokenizer().save_pretrained(tmp_path)
        settings.write_text(json.dumps(json.loads(settings.read_text()) | {"added_tokens_decoder": more}))
    elif edit == "cut":
        cut = {"max_length": 2, "stride": 0, "strategy": "LongestFirst", "direction": "Right"}
        file.write_text(json.dumps(json.loads(file.read_text()) | {"truncation": cut}))
    elif edit == "no settings":
        settings.unlink()
    assert encoded(tmp_path) == expected(tmp_path)


def test_transformers_is_not_imported_for_a_file_that_says_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast_tokenizer().save_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert text_encoder(tmp_path)("w0") == [1, 3]


def test_a_broken_file_is_said(tmp_path: Path) -> None:
    fast_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(RequestError, match="cannot load the tokenizer"):
        text_encoder(tmp_path)
