"""One tokenizer for a language model and its specialists."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken

from _tokenizers import BASE_TOKENS, fast_tokenizer, language_model, multimodal_model, special
from submerge.engine.plan import SharedTokens, share_tokens
from submerge.store import Checkpoint, open_checkpoint


@pytest.fixture
def base(tmp_path: Path) -> Checkpoint:
    folder = language_model(tmp_path / "lm")
    fast_tokenizer().save_pretrained(folder)
    return open_checkpoint(str(folder))


def specialist(folder: Path, added: Sequence[AddedToken], rows: int = 20, **config: Any) -> Checkpoint:
    """Return a multimodal model whose tokenizer is the base's with added tokens."""
    multimodal_model(folder, rows, **config)
    fast_tokenizer(added).save_pretrained(folder)
    return open_checkpoint(str(folder))


def shared(base: Checkpoint, *specialists: tuple[str, Checkpoint], **more: Any) -> SharedTokens:
    tokens, problems = share_tokens(base, specialists, **more)
    assert not problems
    return tokens


def refusals(base: Checkpoint, *specialists: tuple[str, Checkpoint], **more: Any) -> list[str]:
    _, problems = share_tokens(base, specialists, **more)
    assert problems
    return [str(problem) for problem in problems]


def test_specialists_without_new_tokens_need_no_rows(tmp_path: Path, base: Checkpoint) -> None:
    tokens = shared(base, ("image", specialist(tmp_path / "v", [])))
    assert (tokens.added, tokens.rows, tokens.ids(0)) == ((), 16, {})
    assert tokens.lines == ("image: no tokens but those of the base",)


def test_tokens_of_one_id_get_ids_of_their_own_and_are_reported(tmp_path: Path, base: Checkpoint) -> None:
    vision = specialist(tmp_path / "v", special("<image>"))
    audio = specialist(tmp_path / "a", special("<audio>", "<end>"))
    tokens = shared(base, ("image", vision), ("audio", audio), placeholders=["<image>", "<audio>"])
    assert [(token.text, token.id, token.owners) for token in tokens.added] == [
        ("<image>", 16, {0: 16}),
        ("<audio>", 17, {1: 16}),
        ("<end>", 18, {1: 17}),
    ]
    assert (tokens.ids(0), tokens.ids(1)) == ({16: 16}, {16: 17, 17: 18})
    assert tokens.rows == 19
    assert tokens.lines == ("image: <image> 16", "audio: <audio> 16 → 17, <end> 17 → 18")


def test_a_token_that_several_add_has_one_id(tmp_path: Path, base: Checkpoint) -> None:
    vision = specialist(tmp_path / "v", special("<image>", "<pad>"))
    audio = specialist(tmp_path / "a", special("<pad>", "<audio>"))
    tokens = shared(base, ("image", vision), ("audio", audio))
    assert tokens.ids(1) == {16: 17, 17: 18}
    assert tokens.added[1].owners == {0: 17, 1: 16}


def test_how_a_token_is_treated_is_kept(tmp_path: Path, base: Checkpoint) -> None:
    one = AddedToken("<image>", special=False, normalized=True, lstrip=True, rstrip=True, single_word=True)
    other = AddedToken("<image>", special=True, normalized=False)
    vision, twin = specialist(tmp_path / "v", [one]), specialist(tmp_path / "t", [other])
    tokens = shared(base, ("image", vision), ("twin", twin))
    flags = {"special": False, "normalized": True, "lstrip": True, "rstrip": True, "single_word": True}
    assert vars(tokens.added[0].flags) == flags
    assert not tokens.added[0].special
    [warning] = tokens.warnings
    assert warning.startswith("twin: '<image>' is treated as in image")


def test_rows_that_the_bases_tokenizer_does_not_use_are_taken_first(tmp_path: Path) -> None:
    """The base's tables are often longer than its vocabulary: new tokens have the first ids behind it."""
    folder = language_model(tmp_path / "lm", rows=32)
    fast_tokenizer().save_pretrained(folder)
    vision = specialist(tmp_path / "v", special("<image>"), rows=32)
    audio = specialist(tmp_path / "a", special("<audio>"), rows=32)
    tokens = shared(open_checkpoint(str(folder)), ("image", vision), ("audio", audio))
    assert [token.id for token in tokens.added] == [16, 17]
    assert tokens.rows == 32


def test_the_bases_own_added_tokens_may_be_absent(tmp_path: Path) -> None:
    folder = language_model(tmp_path / "lm", rows=18)
    fast_tokenizer(special("<tool>")).save_pretrained(folder)
    audio = specialist(tmp_path / "a", special("<tool>", "<audio>"))
    base = open_checkpoint(str(folder))
    assert shared(base, ("audio", audio)).ids(0) == {17: 17}
    assert shared(base, ("plain", specialist(tmp_path / "p", []))).rows == 18


@pytest.mark.parametrize(
    ("vocabulary", "added", "told"),
    [
        (
            BASE_TOKENS | {"w0": 4, "w1": 3},
            [],
            "2 tokens with other ids than in {base} ('w1': 3 here, 4 there",
        ),
        (
            {t: i for t, i in BASE_TOKENS.items() if t != "w12"} | {"other": 15},
            [],
            "1 token with ids that {base} has for others ('other': 15, there 'w12')",
        ),
        (BASE_TOKENS | {"more": 16}, [], "1 token that {base} lacks, and that are no added tokens ('more')"),
        (
            {t: i for t, i in BASE_TOKENS.items() if i < 14},
            [],
            "2 tokens fewer than in {base} ('w11', 'w12')",
        ),
    ],
)
def test_another_vocabulary_is_refused_with_its_tokens(
    tmp_path: Path, base: Checkpoint, vocabulary: dict[str, int], added: list[AddedToken], told: str
) -> None:
    folder = multimodal_model(tmp_path / "v", 20)
    fast_tokenizer(added, vocabulary).save_pretrained(folder)
    found = refusals(base, ("image", open_checkpoint(str(folder))))
    assert any(told.format(base=base.label) in problem for problem in found)
    assert all(problem.startswith("image: its vocabulary is not the base's") for problem in found)


def test_inputs_that_a_prompt_would_mark_alike_are_refused(tmp_path: Path, base: Checkpoint) -> None:
    vision, video = (specialist(tmp_path / name, special("<image>")) for name in ("v", "m"))
    [told] = refusals(base, ("image", vision), ("video", video), placeholders=["<image>", "<image>"])
    assert told.startswith("video: image and video both mark their inputs with '<image>'")
    assert shared(base, ("image", vision), ("video", video), placeholders=["<image>", None]).rows == 17


def test_a_base_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    bare = open_checkpoint(str(language_model(tmp_path / "lm")))
    [told] = refusals(bare, ("image", specialist(tmp_path / "v", special("<image>"))))
    assert told.startswith(f"{bare.label}: there is no tokenizer here")


# --- specialists without a tokenizer --------------------------------------------------------------


def test_a_configuration_names_the_token_of_a_specialist_without_a_tokenizer(
    tmp_path: Path, base: Checkpoint
) -> None:
    folders = [multimodal_model(tmp_path / name, 20, image_token_index=18) for name in "vw"]
    vision, twin = (open_checkpoint(str(folder)) for folder in folders)
    tokens = shared(base, ("image", vision), ("other", twin), placeholders=["<picture>", None])
    assert [(token.text, token.id, token.owners) for token in tokens.added] == [
        ("<picture>", 16, {0: 18}),
        ("<image>", 17, {1: 18}),
    ]
    assert tokens.warnings[0] == "image: no tokenizer names its token 18 (image): it is called '<picture>'"


def test_an_id_that_the_base_has_needs_no_tokenizer(tmp_path: Path, base: Checkpoint) -> None:
    vision = open_checkpoint(str(multimodal_model(tmp_path / "v", 20, image_token_id=7)))
    assert shared(base, ("image", vision)).added == ()


def test_a_token_that_has_another_id_in_the_tokenizer_is_refused(tmp_path: Path, base: Checkpoint) -> None:
    vision = specialist(tmp_path / "v", special("<image>"), image_token_id=19)
    [told] = refusals(base, ("image", vision))
    assert told.startswith("image: its configuration gives image the id 19, and '<image>' is 16")


def test_a_specialist_that_names_no_token_is_refused(tmp_path: Path, base: Checkpoint) -> None:
    vision = open_checkpoint(str(multimodal_model(tmp_path / "v", 20)))
    [told] = refusals(base, ("image", vision))
    assert "no configuration that names tokens" in told


def test_an_id_without_a_token_and_without_a_row_is_a_default_of_the_class(
    tmp_path: Path, base: Checkpoint
) -> None:
    vision = specialist(tmp_path / "v", special("<image>"), image_token_id=16, video_token_id=32000)
    assert [token.text for token in shared(base, ("image", vision)).added] == ["<image>"]


# --- rows -----------------------------------------------------------------------------------------


def test_a_token_without_a_row_is_refused(tmp_path: Path, base: Checkpoint) -> None:
    vision = specialist(tmp_path / "v", special("<image>"), rows=16)
    [told] = refusals(base, ("image", vision))
    assert told.startswith("image: no model has a row for '<image>' (16)")


def test_a_token_that_the_bases_own_table_lacks_gets_a_specialists_row(tmp_path: Path) -> None:
    folder = language_model(tmp_path / "lm", rows=16)
    fast_tokenizer(special("<pad>")).save_pretrained(folder)
    base = open_checkpoint(str(folder))
    vision = specialist(tmp_path / "v", special("<pad>", "<image>"))
    tokens = shared(base, ("image", vision))
    assert [(token.text, token.id) for token in tokens.added] == [("<pad>", 16), ("<image>", 17)]
    short = specialist(tmp_path / "s", special("<pad>"), rows=16)
    assert refusals(base, ("image", short))[0].startswith("image: no model has a row for '<pad>' (16)")


def test_broken_tokenizers_are_refused(tmp_path: Path, base: Checkpoint) -> None:
    vision = specialist(tmp_path / "v", special("<image>"))
    (vision.path / "tokenizer.json").write_text("{}")
    [told] = refusals(base, ("image", vision))
    assert "transformers cannot load the tokenizer" in told


def test_a_private_file_behind_a_link_is_refused(tmp_path: Path, base: Checkpoint) -> None:
    vision = specialist(tmp_path / "v", special("<image>"))
    (vision.path / "tokenizer.json").rename(tmp_path / "private.json")
    (vision.path / "tokenizer.json").symlink_to(tmp_path / "private.json")
    [told] = refusals(base, ("image", open_checkpoint(str(vision.path))))
    assert "outside the model's folder" in told
