"""Tokenizers and processors of folders, by what the items are."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from _models import TEXT, VISION, quiet_transformers
from calibrate.helpers_processors import image_processor, llava_processor, word_tokenizer, write_images
from submerge.calibrate import Item, encode, load_processor, processor_for
from submerge.errors import RequestError

pytest.importorskip("transformers")
Image = pytest.importorskip("PIL.Image")


def test_items_get_what_encodes_them(tmp_path: Path) -> None:
    (picture,) = write_images(tmp_path, "0.png")
    saved = llava_processor()
    saved.save_pretrained(tmp_path)
    chat = Item(messages=({"role": "user", "content": "a"},))
    items = [Item("a b"), chat, Item(image=picture), Item("a", image=picture)]
    for item in items:
        loaded, expected = encode([item], processor_for(item, tmp_path)), encode([item], saved)
        assert loaded.keys() == expected.keys()
        assert all(loaded[name].equal(expected[name]) for name in expected)


def test_a_processor_pads_with_the_end_of_text(tmp_path: Path) -> None:
    saved = llava_processor()
    saved.tokenizer.pad_token = None
    saved.save_pretrained(tmp_path)
    assert load_processor(tmp_path, images=True, texts=True).tokenizer.pad_token == "</s>"


@pytest.mark.parametrize("saved", [word_tokenizer, image_processor])
def test_a_folder_for_one_of_both(tmp_path: Path, saved: object) -> None:
    saved().save_pretrained(tmp_path)  # type: ignore[operator]
    with pytest.raises(RequestError, match=r"(does not take images with texts|there is no processor)"):
        load_processor(tmp_path, images=True, texts=True)


def test_a_tokenizer_without_padding_pads_with_its_end(tmp_path: Path) -> None:
    t = quiet_transformers()
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.models.WordLevel({"<end>": 0, "a": 1, "b": 2}, unk_token="<end>")
    plain = tokenizers.Tokenizer(words)
    plain.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    t.PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<end>").save_pretrained(tmp_path)
    loaded = load_processor(tmp_path, images=False)
    assert encode([Item("a b"), Item("a")], loaded)["input_ids"].tolist() == [[1, 2], [1, 0]]


def test_a_folder_without_a_processor(tmp_path: Path) -> None:
    for images, what in ((False, "tokenizer"), (True, "image processor")):
        with pytest.raises(RequestError, match=f"there is no {what} .*— copy the base's into the folder"):
            load_processor(tmp_path, images=images)


def test_without_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(RequestError, match="the inputs need the package transformers"):
        load_processor(tmp_path, images=False)


@pytest.mark.parametrize(
    ("tower", "strategy", "count"), [("CLIP", "default", 4), ("CLIP", "full", 5), ("Siglip", "full", 4)]
)
def test_images_have_the_tokens_that_the_model_makes(
    tower: str, strategy: str, count: int, tmp_path: Path
) -> None:
    """Processors that were saved by earlier versions say neither the size of a patch nor the strategy."""
    t = quiet_transformers()
    t.LlavaConfig(
        vision_config=getattr(t, f"{tower}VisionConfig")(**VISION),
        text_config=t.LlamaConfig(**TEXT),
        vision_feature_select_strategy=strategy,
    ).save_pretrained(tmp_path)
    saved = llava_processor()
    saved.patch_size = saved.vision_feature_select_strategy = None
    saved.num_additional_image_tokens = 0
    size = {"height": VISION["image_size"], "width": VISION["image_size"]}
    saved.image_processor.crop_size, saved.image_processor.size = size, {"shortest_edge": size["height"]}
    saved.save_pretrained(tmp_path)
    processor = load_processor(tmp_path, images=True, texts=True)
    ids = processor(text="<image>", images=Image.new("RGB", (16, 16)))["input_ids"][0]
    assert ids.count(processor.image_token_id) == count
