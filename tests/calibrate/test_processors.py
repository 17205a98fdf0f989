"""Tokenizers and processors of folders, by what the items are."""

from __future__ import annotations

from pathlib import Path

import pytest

from calibrate.helpers_processors import image_processor, llava_processor, word_tokenizer, write_images
from submerge.calibrate import Item, encode, load_processor, processor_for
from submerge.errors import RequestError

pytest.importorskip("transformers")
pytest.importorskip("PIL.Image")


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
