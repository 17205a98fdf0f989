"""Chats, and images with texts, as the inputs of models: by templates, placeholders and processors."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from _models import TEXT, VISION, quiet_transformers
from calibrate.helpers_processors import (
    CHAT,
    PARTS,
    clip_processor,
    ids,
    llava,
    llava_processor,
    word_tokenizer,
    write_images,
)
from submerge.calibrate import Item, encode
from submerge.errors import RequestError

pytest.importorskip("transformers")
pytest.importorskip("PIL.Image")


def chat(*contents: Any) -> tuple[dict[str, Any], ...]:
    roles = ("user", "assistant")
    return tuple({"role": roles[n % 2], "content": content} for n, content in enumerate(contents))


def image_part(path: Path) -> dict[str, Any]:
    return {"type": "image", "image": path}


def text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    return write_images(tmp_path, "0.png", "1.png", "2.png")


# --- texts ------------------------------------------------------------------------------------------------


def test_texts_are_cut() -> None:
    words = {word: i for i, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"))}
    tokenizer = quiet_transformers().BertTokenizer(vocab=words)
    inputs = encode([Item("a b c d e f g h")], tokenizer, max_length=5)
    assert inputs["input_ids"].tolist() == [[2, 5, 6, 7, 3]]
    tokenizer.model_max_length = 4
    assert encode([Item("a b c d")], tokenizer)["input_ids"].shape == (1, 4)


def test_a_length_of_the_tokenizer_s_own_tokens_alone_is_refused() -> None:
    words = {word: i for i, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"))}
    tokenizer = quiet_transformers().BertTokenizer(vocab=words)
    for item, own in ((Item("a a a"), 2), (Item("a a", "a"), 3)):
        with pytest.raises(RequestError, match=rf"max_length is {own}, and {own} .* give {own + 1}"):
            encode([item], tokenizer, max_length=own)
        assert encode([item], tokenizer, max_length=own + 1)["input_ids"].shape == (1, own + 1)


def test_a_text_of_which_no_token_is_made_is_told() -> None:
    """As by a tokenizer that is loaded as another class than it was saved as."""
    from tokenizers import Tokenizer, models

    own = Tokenizer(models.BPE({"a": 0, "<s>": 1}, []))
    tokenizer = quiet_transformers().PreTrainedTokenizerFast(tokenizer_object=own, pad_token="<s>")
    items = [Item("a", where="x.jsonl:1"), Item("b", where="x.jsonl:2")]
    assert encode(items[:1], tokenizer)["input_ids"].tolist() == [[0]]
    with pytest.raises(RequestError, match=r"x\.jsonl:2: \w+ makes no token of it — leave it out"):
        encode(items, tokenizer)


def test_padding_is_on_the_right_whatever_the_side_of_the_tokenizer(pictures: list[Path]) -> None:
    """A GPT-2 counts positions from the left, so that padding there would move those of the texts."""
    tokenizer, processor = word_tokenizer(), llava_processor()
    tokenizer.padding_side = processor.tokenizer.padding_side = "left"
    for items, by in (
        ([Item("a b c"), Item("d")], tokenizer),
        ([Item(messages=chat("a b c")), Item(messages=chat("d"))], tokenizer),
        ([Item("a b c", image=pictures[0]), Item("d", image=pictures[1])], processor),
    ):
        inputs = encode(items, by)
        assert inputs["input_ids"][1, -2:].tolist() == [0, 0]
        assert inputs["attention_mask"][1, -2:].tolist() == [0, 0]
        alone = encode(items[1:], by)["input_ids"]
        assert inputs["input_ids"][1, : alone.shape[1]].tolist() == alone[0].tolist()


def test_a_prompt_that_was_rendered_does_not_begin_twice() -> None:
    items = [Item("<s>USER : a"), Item("<s> b"), Item("c <s>")]
    found = encode(items, word_tokenizer())["input_ids"].tolist()
    assert [[n for n in row if n] for row in found] == [ids("<s> USER : a"), ids("<s> b"), ids("<s> c <s>")]


# --- chats ------------------------------------------------------------------------------------------------


def test_chats_end_where_the_answer_begins() -> None:
    items = [Item(messages=chat("a", "b", "c")), Item(messages=chat("d"))]
    inputs = encode(items, word_tokenizer())
    rows = ["<s> USER : a ASSISTANT : b USER : c ASSISTANT :", "<s> USER : d ASSISTANT :"]
    assert inputs["input_ids"].tolist() == [ids(rows[0]), ids(rows[1]) + [0] * 6]
    assert inputs["attention_mask"].sum(1).tolist() == [12, 6]
    assert encode(items, word_tokenizer(), max_length=5)["input_ids"].shape == (2, 5)


def test_a_template_gets_the_tools_of_a_chat() -> None:
    template = "{% for t in tools or [] %}{{ t['name'] }} {% endfor %}" + CHAT
    item = Item(messages=chat("a"), tools=({"name": "b"},))
    assert encode([item], word_tokenizer(template))["input_ids"].tolist() == [
        ids("b <s> USER : a ASSISTANT :")
    ]
    assert encode([Item(messages=chat("a"))], word_tokenizer(template))["input_ids"].shape == (1, 6)


def test_a_template_that_takes_parts_alone_gets_them() -> None:
    inputs = encode([Item(messages=chat("a b"))], word_tokenizer(PARTS))
    assert inputs["input_ids"].tolist() == [ids("USER : a b ASSISTANT :")]


def test_without_a_template(pictures: list[Path]) -> None:
    with pytest.raises(RequestError, match=r"x:1: .* has no chat template — give texts"):
        encode([Item(messages=chat("a"), where="x:1")], word_tokenizer(None))
    parts = chat([image_part(pictures[0]), text_part("a")])
    with pytest.raises(RequestError, match="LlavaProcessor has no chat template"):
        encode([Item(messages=parts)], llava_processor(None))


def test_a_template_that_refuses_a_chat_names_its_line() -> None:
    template = "{% if messages[0]['content'] == 'b' %}{{ raise_exception('no b') }}{% endif %}" + CHAT
    items = [Item(messages=chat(text), where=f"x:{n}") for n, text in enumerate("abc")]
    with pytest.raises(RequestError, match=r"^x:1: .* cannot read it .no b. — check it"):
        encode(items, word_tokenizer(template))


# --- images with texts ------------------------------------------------------------------------------------


def test_the_three_forms_of_a_question_about_an_image_are_one(pictures: list[Path]) -> None:
    """A text without placeholder, a complete prompt, and messages; a model takes the batch."""
    items = [
        Item("a b", image=pictures[0]),
        Item("USER : <image> a b ASSISTANT :", image=pictures[1]),
        Item(messages=chat([image_part(pictures[2]), text_part("a b")])),
    ]
    inputs = encode(items, llava_processor())
    row = ids("<s> USER : <image> <image> <image> <image> a b ASSISTANT :")
    assert inputs["input_ids"].tolist() == [row] * 3
    assert inputs["pixel_values"].shape == (3, 3, 16, 16)
    assert len(set(inputs["pixel_values"].flatten(1).mean(1).tolist())) == 3
    with torch.no_grad():
        assert llava()(**inputs).logits.shape[:2] == (3, len(row))


def test_each_row_is_as_it_is_alone(pictures: list[Path]) -> None:
    items = [Item("a", image=pictures[0]), Item("a b c", image=tuple(pictures[1:]))]
    processor = llava_processor()
    both, alone = encode(items, processor), [encode([item], processor) for item in items]
    for row, inputs in enumerate(alone):
        length = inputs["input_ids"].shape[1]
        tokens, mask = both["input_ids"][row], both["attention_mask"][row].bool()
        assert torch.equal(tokens[mask], inputs["input_ids"][0])
        assert int(mask.sum()) == length
    assert torch.equal(both["pixel_values"], torch.cat([inputs["pixel_values"] for inputs in alone]))
    assert int((both["input_ids"] == ids("<image>")[0]).sum()) == 3 * 4


def test_without_a_template_the_placeholder_stands_in_front(pictures: list[Path]) -> None:
    inputs = encode([Item("a", image=tuple(pictures[:2]))], llava_processor(None))
    assert inputs["input_ids"].tolist() == [ids("<s>" + " <image>" * 8 + " a")]


def test_images_are_as_many_as_placeholders(pictures: list[Path]) -> None:
    item = Item("<image> a", image=tuple(pictures), where="x:7")
    with pytest.raises(RequestError, match="x:7: there are 3 images for 1 placeholders <image> — write one"):
        encode([item], llava_processor())


def test_what_has_placeholders_is_not_cut(pictures: list[Path]) -> None:
    """The image's four tokens do not count."""
    items = [Item("a", image=pictures[0]), Item("a b c d", image=pictures[1], where="x:2")]
    assert encode(items, llava_processor(), max_length=9)["input_ids"].shape == (2, 13)
    with pytest.raises(RequestError, match=r"x:2: the text has 9 tokens besides .* raise max_length to 9"):
        encode(items, llava_processor(), max_length=8)


def test_two_towers(pictures: list[Path]) -> None:
    inputs = encode([Item("a b c d", image=p) for p in pictures], clip_processor(), max_length=4)
    assert inputs["input_ids"].tolist() == [ids("<s> a b c")] * 3
    t = quiet_transformers()
    text = {**TEXT, "eos_token_id": 3, "bos_token_id": 2, "pad_token_id": 0}
    model = t.CLIPModel(t.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=8)).eval()
    with torch.no_grad():
        assert model(**inputs).logits_per_image.shape == (3, 3)


def test_a_processor_reads_texts_and_images_alone(pictures: list[Path]) -> None:
    processor = llava_processor()
    assert encode([Item("a")], processor)["input_ids"].tolist() == [ids("<s> a")]
    assert encode([Item("a", "b")], processor)["input_ids"].tolist() == [ids("<s> a | b")]
    assert encode([Item(image=pictures[0])], processor)["pixel_values"].shape == (1, 3, 16, 16)


# --- the form of images -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P"])
def test_images_as_their_processor_takes_them(mode: str, tmp_path: Path) -> None:
    from PIL import Image

    t = quiet_transformers()
    noise = torch.rand(9, 12, 4, generator=torch.Generator().manual_seed(0)).mul(255).byte().numpy()
    Image.fromarray(noise, "RGBA").convert(mode).save(tmp_path / "one.png")
    image, item = Image.open(tmp_path / "one.png"), Item(image=tmp_path / "one.png")
    size = {"height": 8, "width": 8}
    grey = t.ViTImageProcessor(size=size, image_mean=[0.5], image_std=[0.5])
    colours = t.ViTImageProcessor(size=size)
    converts = t.ViTImageProcessor(size=size, do_convert_rgb=True)
    every = image.convert("RGBA")
    wanted = {grey: every.convert("L"), colours: every.convert("RGB"), converts: image}
    for processor, own in wanted.items():
        expected = processor(images=[own], return_tensors="pt")["pixel_values"]
        found = encode([item], processor)["pixel_values"]
        assert found.shape == (1, 1 if processor is grey else 3, 8, 8)
        assert torch.equal(found, expected)


def _values(path: Path, **sizes: int) -> torch.Tensor:
    """Return what a processor that changes nothing but the size makes of an image."""
    processor = quiet_transformers().ViTImageProcessor(
        size=sizes, do_rescale=False, do_normalize=False, image_mean=[0.0], image_std=[1.0]
    )
    return encode([Item(image=path)], processor)["pixel_values"][0, 0].float()


def test_images_that_lie_on_a_side_are_set_upright(tmp_path: Path) -> None:
    """As transformers' own loading does: cameras store the turn beside the pixels."""
    from PIL import Image

    lying = torch.arange(48, dtype=torch.uint8).view(6, 8)
    turn = Image.Exif()
    turn[0x0112] = 6  # to be turned by 90° to the right
    Image.fromarray(lying.numpy()).save(tmp_path / "lying.png", exif=turn)
    assert torch.equal(_values(tmp_path / "lying.png", height=8, width=6), lying.float().rot90(-1))


def test_grey_values_of_16_bits_are_not_cut_off(tmp_path: Path) -> None:
    from PIL import Image

    grey = torch.arange(64, dtype=torch.int32).view(8, 8) * 1023
    for name, values in (("a.png", grey.to(torch.uint16)), ("b.tif", grey)):
        Image.fromarray(values.numpy()).save(tmp_path / name)
        assert torch.equal(_values(tmp_path / name, height=8, width=8), (grey >> 8).float())
    for values in (grey.float(), grey * 2, -grey):
        Image.fromarray(values.numpy()).save(tmp_path / "c.tif")
        with pytest.raises(RequestError, match=r"c.tif cannot be read .its values have neither 8"):
            _values(tmp_path / "c.tif", height=8, width=8)


# --- images that cannot be read ---------------------------------------------------------------------------


def test_damaged_images(tmp_path: Path, pictures: list[Path]) -> None:
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(pictures[0].read_bytes()[:60])
    for text, processor in (("", llava_processor().image_processor), ("a", llava_processor())):
        items = [Item(text, image=pictures[0]), Item(text, image=damaged, where="x.jsonl:2")]
        with pytest.raises(
            RequestError, match=r"x.jsonl:2: the image .*damaged.png cannot be read .* — replace"
        ):
            encode(items, processor)
    damaged.write_text("no image")
    with pytest.raises(RequestError, match=r"cannot be read .its format is unknown"):
        encode([Item(image=damaged)], llava_processor())


def test_without_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("PIL", "PIL.Image"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(RequestError, match="images need the package PIL"):
        encode([Item(image=tmp_path / "one.png")], None)
