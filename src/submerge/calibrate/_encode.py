"""Items of one kind as the inputs of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from submerge.calibrate._images import image_processor, open_image
from submerge.calibrate._item import Item
from submerge.calibrate._messages import Message, as_parts, read_messages
from submerge.calibrate._processors import tokenizer_of
from submerge.deferred import torch
from submerge.errors import Problem, RequestError, first_line

__all__ = ["MAX_LENGTH", "count_tokens", "encode"]

MAX_LENGTH = 512
"""Tokens to which texts are cut."""

_PADDING: Mapping[str, Any] = {"padding": True, "padding_side": "right"}
"""Models with a position for each place, as GPT-2 and BERT, count it from the left, padding or not."""


def encode(items: Sequence[Item], processor: Any, *, max_length: int = MAX_LENGTH) -> dict[str, torch.Tensor]:
    """Return a model's inputs for items of one kind, padded to the longest of them.

    * texts: `input_ids` [B, L], `attention_mask` [B, L] and what else the tokenizer gives, padded on the
      right, whichever side it pads for `generate`: positions that are counted from the left are those of each
      text alone;
    * chats: the same, by the chat template, which ends where the answer is to begin;
    * images: `pixel_values` [B, C, h, w] of the image processor, as grey values or colours as it has them;
    * images with texts: what the model's processor gives, which puts as many placeholders into the text as
      an image has tokens. A text that has the model's placeholders is a complete prompt. Another goes through
      the chat template, after its images; where there is none, each image gets a placeholder in front.

    Texts and chats are cut at `max_length` tokens. What has placeholders is not, for they must not be cut: a
    text with more tokens than that besides them is an error.

    Raises `RequestError`, with the place where the item stands, for what cannot be read.
    """
    try:
        return _ENCODERS[items[0].kind](items, processor, max_length)
    except RequestError:
        raise
    except Exception as error:  # processors and the templates of models raise what they like
        for item in items if len(items) > 1 else ():
            encode([item], processor, max_length=max_length)  # which of them it is
        what = f"{type(processor).__name__} cannot read it ({first_line(error)})"
        raise RequestError(Problem(what, items[0].where, "check it, and the model's processor")) from error


def count_tokens(item: Item, processor: Any) -> int:
    """Return how many tokens a text or a chat has before it is cut."""
    tokenizer = tokenizer_of(processor)
    if item.messages:
        prompt = _templated(item.messages, tokenizer, item)
        return len(tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"])
    texts = _begun_once([item.text], tokenizer)
    return len(tokenizer(*texts, item.text_pair or None, verbose=False)["input_ids"])


def _texts(items: Sequence[Item], processor: Any, max_length: int) -> dict[str, torch.Tensor]:
    pairs = [item.text_pair for item in items]
    tokenizer = tokenizer_of(processor)
    texts = _begun_once([item.text for item in items], tokenizer)
    return _tokens(tokenizer, items, max_length, texts, pairs if all(pairs) else None)


def _begun_once(texts: Sequence[str], tokenizer: Any) -> list[str]:
    """Return texts without the token of the beginning that the tokenizer puts in front itself.

    Prompts that a chat template has rendered begin with it.
    """
    begin = tokenizer.bos_token
    if not begin or not any(text.startswith(begin) for text in texts):
        return list(texts)
    own = list(tokenizer("a")["input_ids"][:1]) == [tokenizer.bos_token_id]
    return [text.removeprefix(begin) for text in texts] if own else list(texts)


def _chats(items: Sequence[Item], processor: Any, max_length: int) -> dict[str, torch.Tensor]:
    tokenizer = tokenizer_of(processor)
    prompts = [_templated(item.messages, tokenizer, item) for item in items]
    # a template has its own special tokens
    return _tokens(tokenizer, items, max_length, prompts, add_special_tokens=False)


def _tokens(
    tokenizer: Any, items: Sequence[Item], max_length: int, *texts: Any, **more: Any
) -> dict[str, torch.Tensor]:
    length = min(max_length, tokenizer.model_max_length)
    own = tokenizer.num_special_tokens_to_add(pair=len(texts) > 1 and texts[1] is not None)
    if more.get("add_special_tokens", True) and length <= own:  # tokenizers leave texts whole then
        what = (
            f"max_length is {length}, and {own} tokens are the tokenizer's own ({type(tokenizer).__name__})"
        )
        raise RequestError(Problem(what, hint=f"give {own + 1} or more"))
    limits = {"truncation": True, "max_length": length}
    inputs = dict(tokenizer(*texts, **_PADDING, **limits, return_tensors="pt", **more))
    _check_not_empty(inputs, items, tokenizer)
    return inputs


def _check_not_empty(inputs: Mapping[str, torch.Tensor], items: Sequence[Item], tokenizer: Any) -> None:
    """Raise `RequestError` for a text of which no token is made: no model runs on it."""
    like = inputs["input_ids"]
    counts = inputs.get("attention_mask", like.new_ones(like.shape)).sum(1).tolist()
    for item, count in zip(items, counts, strict=True):
        if not count:
            what = f"{type(tokenizer).__name__} makes no token of it"
            hint = "leave it out; or is it the tokenizer of this model, as it was saved?"
            raise RequestError(Problem(what, item.where, hint))


def _images(items: Sequence[Item], processor: Any, max_length: int) -> dict[str, torch.Tensor]:
    images = [open_image(image, processor, item.where) for item in items for image in item.images]
    return dict(image_processor(processor)(images=images, return_tensors="pt"))


def _images_with_texts(items: Sequence[Item], processor: Any, max_length: int) -> dict[str, torch.Tensor]:
    tokenizer = processor.tokenizer
    prompts = [_prompt(item, processor) for item in items]
    images = [[open_image(image, processor, item.where) for image in item.images] for item in items]
    token = getattr(processor, "image_token_id", None)
    text: dict[str, Any] = {**_PADDING}
    if token is None:  # two towers: no image stands in the text
        text |= {"truncation": True, "max_length": min(max_length, tokenizer.model_max_length)}
    if tokenizer.bos_token and all(prompt.startswith(tokenizer.bos_token) for prompt in prompts):
        text["add_special_tokens"] = False  # the template, or the prompt, has it
    inputs = dict(processor(text=prompts, images=images, text_kwargs=text, return_tensors="pt"))
    if token is not None:
        _check_lengths(inputs, token, items, max_length)
    return inputs


def _check_lengths(inputs: Mapping[str, torch.Tensor], token: int, items: Sequence[Item], most: int) -> None:
    own = inputs["attention_mask"].bool() & (inputs["input_ids"] != token)
    for item, count in zip(items, own.sum(1).tolist(), strict=True):
        if count > most:
            what = f"the text has {count} tokens besides those of its images, and max_length is {most}"
            raise RequestError(Problem(what, item.where, f"raise max_length to {count}, or shorten it"))


def _prompt(item: Item, processor: Any) -> str:
    """Return the text of an item with images, with a placeholder for each."""
    if item.messages:
        return _templated(item.messages, processor, item)
    placeholder = getattr(processor, "boi_token", None) or getattr(processor, "image_token", None)
    placeholder = None if placeholder is None else str(placeholder)
    count = item.text.count(placeholder) if placeholder else 0
    if count not in (0, len(item.images)):
        what = f"there are {len(item.images)} images for {count} placeholders {placeholder}"
        raise RequestError(Problem(what, item.where, "write one for each, or none"))
    if count:
        return item.text
    if getattr(processor, "chat_template", None):
        turn = {"role": "user", "content": item.text}
        return _templated(read_messages([turn], item.images, item.where), processor, item)
    return f"{placeholder * len(item.images)}\n{item.text}" if placeholder else item.text


def _templated(messages: Sequence[Message], processor: Any, item: Item) -> str:
    """Return an item's messages as text, up to where the answer is to begin."""
    if not getattr(processor, "chat_template", None):
        what = f"{type(processor).__name__} has no chat template"
        raise RequestError(Problem(what, item.where, "give texts, or the tokenizer of a chat model"))
    more: dict[str, Any] = {"tools": list(item.tools)} if item.tools else {}

    def rendered(form: Sequence[Message]) -> str:
        options = {"tokenize": False, "add_generation_prompt": True, **more}
        text: str = processor.apply_chat_template(list(form), **options)
        return text

    text, last = rendered(messages), [m["content"] for m in messages if m["role"] == "user"][-1]
    if isinstance(last, str) and last.strip() not in text:  # templates that take parts alone drop a text
        return rendered(as_parts(messages))
    return text


_ENCODERS: dict[str, Callable[[Sequence[Item], Any, int], dict[str, torch.Tensor]]] = {
    "texts": _texts,
    "chats": _chats,
    "images": _images,
    "images with texts": _images_with_texts,
}
