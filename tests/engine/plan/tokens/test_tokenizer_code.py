"""Tokenizers with code of their own, as Kimi's: the code travels with the other files, and is not run."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

import submerge
from _models import ROOM
from _tokenizers import language_model

CODE = """
from transformers import PreTrainedTokenizer
from .tool_words import WORDS
from .bytes_of import text_of

raise SystemExit("no code is run by a merge")
"""
AUTO_MAP = {"AutoTokenizer": ["tokenization_kimi.KimiTokenizer", None]}


def kimi(folder: Path, seed: int, *, ranks: int = 13, code: bool = True, **settings: Any) -> Path:
    """Write a model with a file of ranks, two added tokens, and code that imports two other files."""
    language_model(folder, 16, seed)
    lines = (f"{base64.b64encode(bytes([97 + rank])).decode()} {rank}\n" for rank in range(ranks))
    (folder / "tiktoken.model").write_text("".join(lines))
    added = {str(13 + n): {"content": text, "special": True} for n, text in enumerate(("[BOS]", "[EOS]"))}
    config = {"added_tokens_decoder": added, "auto_map": AUTO_MAP, **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if code:
        (folder / "tokenization_kimi.py").write_text(CODE)
        (folder / "tool_words.py").write_text(f"WORDS = {seed}\n")
        (folder / "bytes_of.py").write_text("from . import tool_words\ndef text_of(): ...\n")
    (folder / "modeling_kimi.py").write_text(f"# the model's own, {seed}\n")
    return folder


def recipe(*models: Path, **more: Any) -> dict[str, Any]:
    listed = [{"model": str(model), "parameters": {"weight": 1}} for model in models]
    return {"merge_method": "linear", "models": listed, **more}


def test_the_code_of_a_tokenizer_travels_with_it(tmp_path: Path) -> None:
    base, chat = language_model(tmp_path / "base", 16), kimi(tmp_path / "chat", 1)
    (base / "modeling_kimi.py").write_text("# the base's")
    report = submerge.merge(recipe(base, chat, tokenizer_source=str(chat)), tmp_path / "out", settings=ROOM)
    names = {path.name for path in report.out.iterdir()}
    assert names >= {"tiktoken.model", "tokenization_kimi.py", "tool_words.py", "bytes_of.py"}
    assert (report.out / "modeling_kimi.py").read_text() == "# the base's"
    assert not report.warnings
    assert submerge.verify(report.out, load=False).sound


def test_the_bases_code_does_not_stay_beside_another_tokenizer(tmp_path: Path) -> None:
    base, chat = kimi(tmp_path / "base", 0), language_model(tmp_path / "chat", 16)
    tokens = {chr(97 + n): n for n in range(13)} | {"[BOS]": 13, "[EOS]": 14}
    (chat / "tokenizer.json").write_text(json.dumps({"model": {"type": "WordLevel", "vocab": tokens}}))
    report = submerge.merge(recipe(base, chat, tokenizer_source=str(chat)), tmp_path / "out", settings=ROOM)
    names = {path.name for path in report.out.iterdir()}
    assert not names & {"tiktoken.model", "tokenization_kimi.py", "tokenizer_config.json"}
    assert "modeling_kimi.py" in names


def test_ranks_are_compared_with_what_is_added_to_them(tmp_path: Path) -> None:
    base, chat = kimi(tmp_path / "base", 0), kimi(tmp_path / "chat", 1, ranks=12)
    with pytest.raises(submerge.RequestError, match=r"1 token missing in .*chat \('m'\)"):
        submerge.plan(recipe(base, chat), ROOM)


def test_code_that_is_not_there_is_told(tmp_path: Path) -> None:
    base, chat = language_model(tmp_path / "base", 16), kimi(tmp_path / "chat", 1, code=False)
    plan = submerge.plan(recipe(base, chat, tokenizer_source=str(chat)), ROOM)
    [told] = plan.warnings
    assert "tokenizer_config.json names code that its folder lacks (tokenization_kimi.py)" in told
    elsewhere = {"auto_map": {"AutoTokenizer": "org/name--tokenization_kimi.KimiTokenizer"}}
    kimi(chat, 1, code=False, **elsewhere)
    assert not submerge.plan(recipe(base, chat, tokenizer_source=str(chat)), ROOM).warnings


def test_code_of_one_name_in_two_models_is_told(tmp_path: Path) -> None:
    base, chat = kimi(tmp_path / "base", 0), kimi(tmp_path / "chat", 1)
    report = submerge.merge(recipe(base, chat, tokenizer_source=str(chat)), tmp_path / "out", settings=ROOM)
    [told] = report.warnings
    assert f"{chat}: tool_words.py, which its tokenizer's code imports, is another there" in told
    assert (report.out / "tool_words.py").read_text() == "WORDS = 0\n"


def test_code_behind_a_link_that_leads_out_is_refused(tmp_path: Path) -> None:
    base, chat = language_model(tmp_path / "base", 16), kimi(tmp_path / "chat", 1)
    (tmp_path / "private.py").write_text("secret")
    (chat / "tool_words.py").unlink()
    (chat / "tool_words.py").symlink_to(tmp_path / "private.py")
    with pytest.raises(submerge.RequestError, match="outside the model's folder"):
        submerge.plan(recipe(base, chat, tokenizer_source=str(chat)), ROOM)


def test_tokens_that_only_code_could_list_are_an_error_with_what_to_do(tmp_path: Path) -> None:
    base, chat = kimi(tmp_path / "base", 0), kimi(tmp_path / "chat", 1, ranks=12)
    with pytest.raises(submerge.RequestError, match=r"which is not run here.* save_pretrained"):
        submerge.plan(recipe(base, chat, tokenizer_source="union"), ROOM)
