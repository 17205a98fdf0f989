from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from submerge.errors import RequestError
from submerge.store import Vocabulary, compare_vocabularies, is_tokenizer_file, read_vocabulary


def put(folder: Path, name: str, content: Any) -> Path:
    folder.mkdir(exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / name).write_text(text, encoding="utf-8")
    return folder


def read(folder: Path) -> Vocabulary:
    found = read_vocabulary(folder)
    assert found is not None
    return found


def test_no_tokenizer(tmp_path: Path) -> None:
    assert read_vocabulary(tmp_path) is None


def test_fast_tokenizers(tmp_path: Path) -> None:
    bpe = {"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": [{"id": 2, "content": "<s>"}]}
    found = read(put(tmp_path / "bpe", "tokenizer.json", bpe))
    assert found.tokens == {"a": 0, "b": 1, "<s>": 2}
    assert (found.file, found.size) == ("tokenizer.json", 3)
    unigram = {"model": {"vocab": [["a", -1.0], ["b", -2.0]]}}
    assert read(put(tmp_path / "uni", "tokenizer.json", unigram)).tokens == {"a": 0, "b": 1}


def test_slow_tokenizers(tmp_path: Path) -> None:
    folder = put(tmp_path / "slow", "vocab.json", {"a": 0, "b": 1})
    put(folder, "added_tokens.json", {"<x>": 2})
    assert read(folder).tokens == {"a": 0, "b": 1, "<x>": 2}
    assert read(put(tmp_path / "bert", "vocab.txt", "[PAD]\n[UNK]\nthe\n")).tokens == {
        "[PAD]": 0,
        "[UNK]": 1,
        "the": 2,
    }
    nested = read(put(tmp_path / "mms", "vocab.json", {"eng": {"a": 0}, "fra": {"a": 0}}))
    assert nested.tokens == {"eng a": 0, "fra a": 0}


def test_sentencepiece_by_digest(tmp_path: Path) -> None:
    a = read(put(tmp_path / "a", "tokenizer.model", "one"))
    b = read(put(tmp_path / "b", "tokenizer.model", "one"))
    c = read(put(tmp_path / "c", "tokenizer.model", "two"))
    fast = put(tmp_path / "d", "tokenizer.json", {"model": {"vocab": {"a": 0}}})
    d = read(put(fast, "tokenizer.model", "one"))
    assert a.tokens is None
    assert a.size is None
    assert compare_vocabularies(a, b).equal
    assert compare_vocabularies(a, d).equal
    assert not compare_vocabularies(a, c).equal
    assert "cannot be compared" in compare_vocabularies(a, c).describe()


def test_tokens_that_were_added_to_one_sentencepiece_file(tmp_path: Path) -> None:
    for name, added in (("a", {}), ("b", {"<new>": 9})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.model").write_bytes(b"")
        (tmp_path / name / "added_tokens.json").write_text(json.dumps(added))
    a, b = read_vocabulary(tmp_path / "a"), read_vocabulary(tmp_path / "b")
    assert a is not None
    assert b is not None
    difference = compare_vocabularies(a, b)
    assert not difference.missing_in_b
    assert not difference.within_a
    assert difference.describe("a", "b") == "1 token missing in a ('<new>')"


def test_differences(tmp_path: Path) -> None:
    left = {f"t{number}": number for number in range(10)} | {"x": 10, "y": 11}
    right = {"x": 11, "y": 10, "new": 12}
    a = Vocabulary(tmp_path, "vocab.json", left)
    b = Vocabulary(tmp_path, "vocab.json", right)
    diff = compare_vocabularies(a, b)
    assert (diff.equal, diff.comparable) == (False, True)
    assert (diff.missing_in_a, diff.missing_in_b, diff.moved) == (1, 10, 2)
    assert diff.examples_missing_in_b == ("t0", "t1", "t2", "t3", "t4")
    assert diff.examples_moved == (("x", 10, 11), ("y", 11, 10))
    text = diff.describe("base", "tuned")
    assert "1 token missing in base ('new')" in text
    assert "10 tokens missing in tuned ('t0', 't1', 't2', 't3', 't4', …)" in text
    assert "2 tokens with other ids ('x': 10 and 11, 'y': 11 and 10)" in text
    same = compare_vocabularies(a, Vocabulary(tmp_path, "x", dict(reversed(left.items()))))
    assert same.equal
    assert same.describe() == "the vocabularies are equal"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "{broken"),
        ("tokenizer.json", [1]),
        ("tokenizer.json", {"model": {"vocab": 3}}),
        ("tokenizer.json", {"model": {"vocab": [1]}}),
        ("tokenizer.json", {"model": {"vocab": {"a": "b"}}}),
        ("tokenizer.json", {"model": {"vocab": {}}, "added_tokens": [{"id": "1", "content": "a"}]}),
        ("tokenizer.json", {"model": {"vocab": {}}, "added_tokens": {"a": 1}}),
        ("vocab.json", {"a": 1.5}),
    ],
)
def test_broken_files_are_named(tmp_path: Path, name: str, content: Any) -> None:
    with pytest.raises(RequestError, match=name):
        read_vocabulary(put(tmp_path / "broken", name, content))
    bad = put(tmp_path / "text", "vocab.txt", "")
    (bad / "vocab.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(RequestError, match=r"vocab\.txt"):
        read_vocabulary(bad)


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("tokenizer.json", True),
        ("merges.txt", True),
        ("spiece.model", True),
        ("spm.model", True),
        ("qwen.tiktoken", True),
        ("tiktoken.model", True),
        ("tokenization_kimi.py", True),
        ("modeling_kimi.py", False),
        ("chat_template.jinja", True),
        ("additional_chat_templates/tools.jinja", True),
        ("config.json", False),
        ("other/tools.jinja", False),
        ("speech/vocab.json", False),
    ],
)
def test_tokenizer_files(name: str, is_one: bool) -> None:
    assert is_tokenizer_file(Path(name)) is is_one


def tekken(special: list[str], count: int = 3) -> dict[str, Any]:
    """Return a `tekken.json` with the pieces ' ', 'é' and 'a', and one more than there is room for."""
    pieces = ["IA==", "w6k=", "YQ==", "Yg=="]
    return {
        "config": {"default_num_special_tokens": 4, "default_vocab_size": 4 + count},
        "vocab": [{"rank": rank, "token_bytes": piece} for rank, piece in enumerate(pieces)],
        "special_tokens": [{"rank": rank, "token_str": text} for rank, text in enumerate(special)],
    }


def test_tokens_in_bytes(tmp_path: Path) -> None:
    own = read(put(tmp_path / "own", "tekken.json", tekken(["<unk>", "<s>"])))
    expected = {"<unk>": 0, "<s>": 1, "<SPECIAL_2>": 2, "<SPECIAL_3>": 3, "Ġ": 4, "Ã©": 5, "a": 6}
    assert own.tokens == expected
    assert own.size == 7
    other = read(put(tmp_path / "other", "tekken.json", tekken(["<unk>", "<s>", "[AUDIO]"])))
    assert not compare_vocabularies(own, other).equal
    fast = put(tmp_path / "fast", "tokenizer.json", {"model": {"vocab": expected}})
    assert compare_vocabularies(own, read(fast)).equal
    ranks = read(put(tmp_path / "ranks", "qwen.tiktoken", "IA== 0\nw6k= 1\n"))
    assert (ranks.tokens, ranks.file) == ({"Ġ": 0, "Ã©": 1}, "qwen.tiktoken")


@pytest.mark.parametrize(
    ("file", "content"),
    [("tekken.json", {"vocab": []}), ("qwen.tiktoken", "no base64\n"), ("tekken.json", "{")],
)
def test_broken_tokens_in_bytes(tmp_path: Path, file: str, content: Any) -> None:
    with pytest.raises(RequestError, match=file):
        read(put(tmp_path / "own", file, content))
