"""The files of a composed model beside its weights, as transformers loads them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    LlavaProcessor,
    Qwen2AudioProcessor,
    WhisperFeatureExtractor,
)
from transformers.models.clip import CLIPImageProcessorPil

from _tokenizers import BASE_TOKENS, fast_tokenizer, language_model, multimodal_model, special
from submerge.engine.output import ModalityFiles, write_modality_files
from submerge.engine.plan import SharedTokens, share_tokens
from submerge.errors import RequestError, WorkError
from submerge.store import Checkpoint, open_checkpoint

AUDIO = ("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")


def vision_model(folder: Path) -> Checkpoint:
    """Write an image specialist with its processor."""
    multimodal_model(folder, 20, image_token_index=16)
    images = CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    tokenizer = fast_tokenizer(special("<image>"))
    LlavaProcessor(
        images, tokenizer, patch_size=4, vision_feature_select_strategy="default", chat_template="seen"
    ).save_pretrained(folder)
    return open_checkpoint(str(folder))


def audio_model(folder: Path) -> Checkpoint:
    """Write an audio specialist with its processor, and a configuration as older versions wrote it."""
    sounds = {"pad_token_id": 16, "num_mel_bins": 8}
    multimodal_model(
        folder, 20, model_type="qwen2_audio", audio_token_index=16, vocab_size=20, audio_config=sounds
    )
    tokenizer = fast_tokenizer(special(*AUDIO))
    Qwen2AudioProcessor(WhisperFeatureExtractor(feature_size=8, chunk_length=1), tokenizer).save_pretrained(
        folder
    )
    return open_checkpoint(str(folder))


def base_model(folder: Path, **tokenizer: Any) -> Checkpoint:
    language_model(folder)
    made = fast_tokenizer(**tokenizer)
    made.chat_template = "chat"
    made.save_pretrained(folder)
    return open_checkpoint(str(folder))


def files_of(name: str, model: Checkpoint) -> ModalityFiles:
    return ModalityFiles(name, model.path, model.side_files, model.config or {})


def written(out: Path, base: Checkpoint, **specialists: Checkpoint) -> SharedTokens:
    """Write the files of a composed model of these specialists, and return its tokens."""
    tokens, problems = share_tokens(base, list(specialists.items()))
    assert not problems
    out.mkdir(exist_ok=True)
    (out / "config.json").write_text((base.path / "config.json").read_text())
    write_modality_files(tokens, [files_of(n, m) for n, m in specialists.items()], out)
    return tokens


def ending_model(folder: Path, ends: Any, *, beside: bool = True) -> Checkpoint:
    """Write an image specialist with tokens `<image>` 16 and `<end>` 17 that ends its texts at some ids."""
    where = "generation_config.json" if beside else "config.json"
    multimodal_model(folder, 20, image_token_index=16)
    fast_tokenizer(special("<image>", "<end>")).save_pretrained(folder)
    path = folder / where
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**known, "eos_token_id": ends}))
    return open_checkpoint(str(folder))


@pytest.mark.parametrize("beside", [True, False], ids=["generation", "config"])
def test_text_ends_where_a_specialist_ends_it(tmp_path: Path, beside: bool) -> None:
    base = base_model(tmp_path / "lm")
    first = ending_model(tmp_path / "v", [2, 17, 5], beside=beside)  # 5 is a word
    second = ending_model(tmp_path / "d", 17, beside=beside)
    out = tmp_path / "out"
    out.mkdir()
    (out / "generation_config.json").write_text('{"eos_token_id": 2, "top_k": 3}')
    (base.path / "generation_config.json").write_text('{"eos_token_id": 2, "top_k": 3}')
    tokens = written(out, base, image=first, depth=second)
    assert tokens.ends == (17,)
    assert any("image: text ends at <end> 17, too" in line for line in tokens.lines)
    config = json.loads((out / "generation_config.json").read_text())
    assert config == {"eos_token_id": [2, 17], "top_k": 3}
    (base.path / "generation_config.json").unlink()
    assert written(tmp_path / "other", base, image=first).ends == (17,)
    assert json.loads((tmp_path / "other" / "config.json").read_text())["eos_token_id"] == [2, 17]
    unknown = replace(base, config={k: v for k, v in (base.config or {}).items() if k != "eos_token_id"})
    assert not share_tokens(unknown, [("image", first)])[0].ends, "what ends its text is a class's default"
    (first.path / "generation_config.json").write_text("{")
    with pytest.raises(RequestError, match=r"generation_config\.json"):
        share_tokens(base, [("image", first)])


def test_a_specialists_token_fills_up_where_the_base_has_none(tmp_path: Path) -> None:
    base, models = base_model(tmp_path / "lm"), dict[str, Checkpoint]()
    for name in ("image", "depth"):
        multimodal_model(tmp_path / name, 20, image_token_index=16)
        tokenizer = fast_tokenizer(special("<image>", f"<{name} pad>"))
        tokenizer.pad_token = f"<{name} pad>"
        tokenizer.save_pretrained(tmp_path / name)
        models[name] = open_checkpoint(str(tmp_path / name))
    tokens = written(tmp_path / "out", base, **models)
    assert "image: <image pad> fills up the shorter texts of a batch: the base has no token for that" in (
        tokens.lines
    )
    made = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (made.pad_token, made.pad_token_id) == ("<image pad>", 17)
    assert made(["w1", "w1 w2"], padding=True)["input_ids"] == [[4, 17], [4, 5]]
    tokenizer = fast_tokenizer()
    tokenizer.pad_token = "</s>"
    tokenizer.save_pretrained(base.path)
    assert written(tmp_path / "own", open_checkpoint(str(base.path)), image=models["image"]).pad is None


def test_processors_load_with_the_shared_ids(tmp_path: Path) -> None:
    vision, audio = vision_model(tmp_path / "v"), audio_model(tmp_path / "a")
    written(tmp_path / "out", base_model(tmp_path / "lm"), image=vision, audio=audio)
    root = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert root.convert_tokens_to_ids(["<image>", *AUDIO]) == [16, 17, 18, 19]
    assert root.chat_template == "chat", "the base's"
    seen = AutoProcessor.from_pretrained(tmp_path / "out" / "modalities" / "image")
    heard = AutoProcessor.from_pretrained(tmp_path / "out" / "modalities" / "audio")
    assert isinstance(seen, LlavaProcessor)
    assert isinstance(heard, Qwen2AudioProcessor)
    assert (seen.image_token_id, heard.audio_token_id) == (16, 17)
    assert seen.chat_template == "seen"
    assert heard.feature_extractor.feature_size == 8
    for processor in (seen, heard):
        assert processor.tokenizer.get_vocab() == root.get_vocab()
    skipped = root.decode(root("w1 <|AUDIO|> w2").input_ids, skip_special_tokens=True)
    assert skipped.split() == ["w1", "w2"]


def test_configurations_have_the_shared_ids_and_rows(tmp_path: Path) -> None:
    vision, audio = vision_model(tmp_path / "v"), audio_model(tmp_path / "a")
    out = tmp_path / "out"
    written(out, base_model(tmp_path / "lm"), image=vision, audio=audio)
    assert json.loads((out / "config.json").read_text())["vocab_size"] == 20
    image, sound = (
        json.loads((out / "modalities" / n / "config.json").read_text()) for n in ("image", "audio")
    )
    assert image == {**(vision.config or {}), "text_config": {**(vision.config or {})["text_config"]}}
    own = audio.config or {}
    assert sound == {**own, "audio_token_index": 17}, "an id of the encoder's own is left alone"
    assert sound["audio_config"]["pad_token_id"] == 16
    assert "vocab_size" not in image


def test_no_weights_and_no_other_files_are_copied(tmp_path: Path) -> None:
    vision = vision_model(tmp_path / "v")
    (vision.path / "README.md").write_text("private")
    (vision.path / "notes.txt").write_text("private")
    (vision.path / "encoder").mkdir()
    (vision.path / "encoder" / "model.safetensors").write_bytes(b"")
    out = tmp_path / "out"
    written(out, base_model(tmp_path / "lm"), image=open_checkpoint(str(vision.path)))
    assert {path.name for path in (out / "modalities" / "image").iterdir()} == {
        "chat_template.jinja",
        "config.json",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_without_new_tokens_the_bases_tokenizer_is_copied_byte_for_byte(tmp_path: Path) -> None:
    base, out = base_model(tmp_path / "lm"), tmp_path / "out"
    folder = multimodal_model(tmp_path / "v", 16, image_token_id=5)
    tokens = written(out, base, image=open_checkpoint(str(folder)))
    assert tokens.rows == 16
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (out / name).read_bytes() == (base.path / name).read_bytes()


def test_the_older_tables_of_added_tokens_are_extended(tmp_path: Path) -> None:
    base = base_model(tmp_path / "lm")
    path = base.path / "tokenizer_config.json"
    decoder = {"0": {"content": "<unk>", "special": True}}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"added_tokens_decoder": decoder}))
    (base.path / "added_tokens.json").write_text("{}")
    base = open_checkpoint(str(base.path))
    written(tmp_path / "out", base, image=vision_model(tmp_path / "v"))
    config = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert config["added_tokens_decoder"]["16"] == {
        "content": "<image>",
        "special": True,
        "normalized": False,
        "lstrip": False,
        "rstrip": False,
        "single_word": False,
    }
    assert json.loads((tmp_path / "out" / "added_tokens.json").read_text()) == {"<image>": 16}


def test_a_processors_tokens_and_template_come_from_its_own_tokenizer(tmp_path: Path) -> None:
    """Older folders have the template in the tokenizer's configuration, and tokens that have a name there."""
    vision = vision_model(tmp_path / "v")
    (vision.path / "chat_template.jinja").unlink()
    path = vision.path / "tokenizer_config.json"
    own = {"image_token": "<image>", "chat_template": "older", "padding_side": "left", "eos_token": "<s>"}
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    out = tmp_path / "out"
    written(out, base_model(tmp_path / "lm"), image=open_checkpoint(str(vision.path)))
    tokenizer = AutoTokenizer.from_pretrained(out / "modalities" / "image")
    assert (tokenizer.image_token, tokenizer.chat_template) == ("<image>", "older")
    assert (tokenizer.padding_side, tokenizer.eos_token) == ("left", "</s>")
    root = AutoTokenizer.from_pretrained(out)
    assert root.chat_template == "chat"
    assert not hasattr(root, "image_token")


def test_another_numbering_than_planned_is_an_error(tmp_path: Path) -> None:
    base, vision = base_model(tmp_path / "lm"), vision_model(tmp_path / "v")
    tokens, _ = share_tokens(base, [("image", vision)])
    fast_tokenizer(special("<other>")).save_pretrained(base.path)
    (tmp_path / "out").mkdir()
    with pytest.raises(WorkError, match=r"numbers tokens otherwise than planned \('<image>': 17, not 16\)"):
        write_modality_files(tokens, [files_of("image", vision)], tmp_path / "out")


def test_a_video_specialists_files_are_taken(tmp_path: Path) -> None:
    folder = multimodal_model(
        tmp_path / "m", 20, model_type="video_llava", image_token_index=16, video_token_index=17
    )
    fast_tokenizer(special("<image>", "<video>")).save_pretrained(folder)
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        (folder / name).write_text('{"size": {"shortest_edge": 8}}')
    audio = audio_model(tmp_path / "a")
    out = tmp_path / "out"
    written(out, base_model(tmp_path / "lm"), audio=audio, video=open_checkpoint(str(folder)))
    video = out / "modalities" / "video"
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        assert (video / name).read_bytes() == (folder / name).read_bytes()
    config = json.loads((video / "config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(video)
    assert tokenizer.convert_tokens_to_ids(["<image>", "<video>"]) == [19, 20]
    assert (config["image_token_index"], config["video_token_index"]) == (19, 20)
    assert config["text_config"]["vocab_size"] == 21


# --- the same tokens as with each specialist's own tokenizer --------------------------------------

TEXT = st.sampled_from(["w1", "w2", "w12", " ", "x", "<unk>", "<s>"])
PIECE = st.text("<>|ab", min_size=1, max_size=4).map(lambda text: f"<{text}>")


@st.composite
def added_tokens(draw: st.DrawFn) -> list[AddedToken]:
    """Return added tokens of one specialist, of any treatment."""
    texts = draw(st.lists(PIECE, max_size=3, unique=True))
    flags = st.fixed_dictionaries(
        {name: st.booleans() for name in ("special", "normalized", "lstrip", "rstrip", "single_word")}
    )
    return [AddedToken(text, **draw(flags)) for text in texts]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("merges", [None, [("w", "1"), ("w1", "2")]])
def test_every_specialists_text_has_the_tokens_of_its_own_tokenizer(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, merges: Sequence[tuple[str, str]] | None
) -> None:
    folder = tmp_path_factory.mktemp("tokens")
    vocabulary = BASE_TOKENS if merges is None else BYTE_PAIRS
    specialists = data.draw(st.lists(added_tokens(), min_size=1, max_size=3))
    treated: dict[str, AddedToken] = {}
    for own in specialists:  # tokens of one text are one token
        own[:] = [treated.setdefault(token.content, token) for token in own]
    base = base_model(folder / "lm", vocabulary=vocabulary, merges=merges)
    models = {}
    for n, own in enumerate(specialists):
        multimodal_model(folder / str(n), 40, image_token_id=1)
        fast_tokenizer(own, vocabulary, merges).save_pretrained(folder / str(n))
        models[str(n)] = open_checkpoint(str(folder / str(n)))
    tokens = written(folder / "out", base, **models)
    root = AutoTokenizer.from_pretrained(folder / "out")
    for n, own in enumerate(specialists):
        texts = [token.content for token in own]
        pieces = data.draw(st.lists(TEXT | (st.sampled_from(texts) if texts else st.nothing()), max_size=8))
        text = "".join(pieces)
        others = [token.text for token in tokens.added if token.text not in texts]
        if any(other in text for other in others):
            continue
        alone = AutoTokenizer.from_pretrained(folder / str(n))
        assert root.tokenize(text) == alone.tokenize(text)
        ids = tokens.ids(n)
        assert root(text).input_ids == [ids.get(id_, id_) for id_ in alone(text).input_ids]


BYTE_PAIRS = {"<unk>": 0, "<s>": 1, "</s>": 2, "w": 3, "1": 4, "2": 5, "x": 6, "w1": 7, "w12": 8}
