"""Conversations with images and sounds, in the chat template of a base that takes strings."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import submerge
from _processors import IMAGES_FIRST, RATE, composed, image, own_processor, sound, tokens_of
from submerge.serving import ModalityProcessor
from submerge.serving._chat import markup

MARKED = "Audio {}: <|audio_bos|><|AUDIO|><|audio_eos|>\n"


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> ModalityProcessor:
    return submerge.load_processor(composed(tmp_path_factory.mktemp("out"), ["image", "audio", "depth"]))


def user(*content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(content)}]


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def test_strings_are_rendered_as_by_the_base(processor: ModalityProcessor) -> None:
    messages = [{"role": "system", "content": "be short"}, {"role": "user", "content": "hello"}]
    options = {"add_generation_prompt": True}
    theirs = processor.tokenizer.apply_chat_template
    assert processor.apply_chat_template(messages, **options) == theirs(messages, tokenize=False, **options)
    assert processor.apply_chat_template(user(text("hel"), text("lo"))) == theirs(
        [{"role": "user", "content": "hello"}], tokenize=False
    )
    ours = processor.apply_chat_template(messages, tokenize=True, return_dict=True, **options)
    assert ours["input_ids"][0] == theirs(messages, return_dict=True, **options)["input_ids"]


def test_each_input_has_the_markup_of_its_specialist(processor: ModalityProcessor) -> None:
    messages = user(text("a"), {"type": "audio"}, {"type": "image"}, {"type": "audio"}, {"type": "depth"})
    expected = f"[user]a{MARKED.format(1)}<image>\n{MARKED.format(2)}<depth>\n"
    assert processor.apply_chat_template(messages) == expected


def test_inputs_are_counted_from_the_start_of_a_conversation(processor: ModalityProcessor) -> None:
    messages = [*user({"type": "audio"}), {"role": "assistant", "content": "b"}, *user({"type": "audio"})]
    one = processor.apply_chat_template(messages)
    assert one == f"[user]{MARKED.format(1)}\n[assistant]b\n[user]{MARKED.format(2)}\n"
    assert processor.apply_chat_template([messages, messages[:1]]) == [one, one.partition("[assistant]")[0]]


@pytest.mark.parametrize("key", ["markup", "placeholder"])
def test_the_recipe_says_the_markup(tmp_path: Path, key: str) -> None:
    processor = submerge.load_processor(composed(tmp_path, ["image"], **{key: "Picture: <image>. "}))
    assert processor.specialists["image"].placeholder == "<image>"
    assert markup(processor.specialists["image"], 3) == "Picture: <image>. "


def test_markup_without_the_token_is_told(tmp_path: Path) -> None:
    with pytest.raises(submerge.RequestError, match="an input is marked by 'Picture', which has no token"):
        submerge.load_processor(composed(tmp_path, ["image"], placeholder="Picture"))


def test_what_messages_hold_is_processed_in_their_order(processor: ModalityProcessor, tmp_path: Path) -> None:
    Image.fromarray(image(1)).save(tmp_path / "one.png")
    messages = [
        *user({"type": "image", "image": image(0)}, {"type": "audio", "audio": sound(0)}, text("b")),
        *user({"type": "image_url", "image_url": {"url": f"file://{tmp_path}/one.png"}}),
    ]
    options = {"return_tensors": "pt", "sampling_rate": RATE, "padding": True}
    ours = processor.apply_chat_template(
        [messages, user(text("c"))], tokenize=True, return_dict=True, **options
    )
    prompts = processor.apply_chat_template([messages, user(text("c"))])
    theirs = processor(
        text=prompts,
        images=[image(0), image(1)],
        audio=sound(0),
        add_special_tokens=False,
        **options,
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    ids = processor.apply_chat_template(
        [messages, user(text("c"))], tokenize=True, processor_kwargs={"images_kwargs": {}}, **options
    )
    assert torch.equal(ids, ours["input_ids"])


def test_pipelines_get_texts_of_generated_ids(processor: ModalityProcessor) -> None:
    ids = processor.tokenizer("a b", return_tensors="pt")["input_ids"]
    for texts in (
        processor.post_process_image_text_to_text(ids),
        processor.post_process_multimodal_output(ids, generation_mode="text"),
    ):
        assert texts == processor.batch_decode(ids, skip_special_tokens=True)
    with pytest.raises(submerge.RequestError, match="'audio': a composed model answers with text"):
        processor.post_process_multimodal_output(ids, generation_mode="audio")


def test_inputs_may_be_given_beside_the_messages(processor: ModalityProcessor) -> None:
    ours = processor.apply_chat_template(
        user({"type": "image"}), tokenize=True, return_dict=True, images=image(0), return_tensors="pt"
    )
    own = own_processor("image")
    assert processor.tokenizer.decode(ours["input_ids"][0]).count("<image>") == 5
    theirs = own(images=image(0), text="<image>", return_tensors="pt")["pixel_values"]
    assert any(value.shape == theirs.shape and torch.equal(value, theirs) for value in ours.values())


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"type": "smell"}, "content of type 'smell'; there are text, image, audio, depth"),
        ({"text": "a"}, "an item of a message's content is .*'text': 'a'.* — write"),
        ({"type": "text"}, "an item of a message's content is .*'type': 'text'"),
        ("a", "an item of a message's content is 'a'"),
        ({"type": "image", "url": "https://a.org/b.png"}, "no file is fetched from the net"),
        ({"type": "image"}, "1 <image> in the text, 0 images given"),
        ({"type": "text", "text": "a", "image": image(0)}, "an item of text holds image besides — write"),
    ],
)
def test_content_that_cannot_be_read_is_told(
    processor: ModalityProcessor, item: dict[str, str], message: str
) -> None:
    with pytest.raises(submerge.RequestError, match=message):
        processor.apply_chat_template(user(item), tokenize=True)


def test_what_is_no_conversation_is_told(processor: ModalityProcessor) -> None:
    for conversation in ("hello", ["hello"]):
        with pytest.raises(
            submerge.RequestError, match=r"a conversation is .*hello.* — write a list of messages"
        ):
            processor.apply_chat_template(conversation)
    mask = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
    with pytest.raises(submerge.RequestError, match="return_assistant_tokens_mask is not there"):
        processor.apply_chat_template([{"role": "user", "content": "hello"}], **mask)


def test_content_that_is_no_list_is_told(processor: ModalityProcessor) -> None:
    message = {"role": "user", "content": {"type": "text", "text": "a"}}
    with pytest.raises(submerge.RequestError, match="content is an item by itself — write a list"):
        processor.apply_chat_template([message])


def test_a_template_that_takes_lists_alone_gets_lists(tmp_path: Path) -> None:
    """That of a specialist's processor leaves strings out, and the first token to the tokenizer."""
    from tokenizers.processors import TemplateProcessing

    processor, own = submerge.load_processor(composed(tmp_path, ["image"])), own_processor("image")
    for one in (processor.tokenizer, own.tokenizer):
        begun = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", one.bos_token_id)])
        one.backend_tokenizer.post_processor = begun
    picture = Image.fromarray(image(0))
    system = {"role": "system", "content": "be short"}
    messages = [system, *user({"type": "image", "image": picture}, text("what?"))]
    prompt = processor.apply_chat_template(messages, chat_template=IMAGES_FIRST)
    assert prompt == "system: be shortuser: <image>\nwhat?"
    listed = [{**system, "content": [text("be short")]}, messages[1]]
    assert prompt == own.apply_chat_template(listed)
    process = {"tokenize": True, "return_dict": True}
    for begin in ("", "{{ bos_token }}"):
        template = begin + IMAGES_FIRST
        ours = processor.apply_chat_template(messages, chat_template=template, **process)
        theirs = own.apply_chat_template(copy.deepcopy(listed), chat_template=template, **process)
        assert tokens_of(processor.tokenizer, ours) == tokens_of(own.tokenizer, theirs)
        assert tokens_of(own.tokenizer, theirs)[0][:2] == ["<s>", "s"]


def test_a_base_without_a_chat_template_is_told_and_another_may_be_given(tmp_path: Path) -> None:
    processor = submerge.load_processor(composed(tmp_path, ["image"], chat=None))
    with pytest.raises(
        submerge.RequestError, match=r"no chat template — give chat_template=, such as .*<image> for image"
    ):
        processor.apply_chat_template(user({"type": "image"}))
    theirs = processor.specialists["image"].processor.chat_template
    assert processor.apply_chat_template(user({"type": "image"}, text("a")), chat_template=theirs) == (
        "user: <image>\na"
    )
    template = "{{ messages[0]['content'] }}!"
    assert processor.apply_chat_template(user({"type": "image"}), chat_template=template) == "<image>\n!"
