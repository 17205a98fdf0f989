"""Conversations with images and others, written for a chat template that takes strings alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from submerge.errors import Problem, RequestError, few
from submerge.serving._specialist_processor import SpecialistProcessor

__all__ = ["as_lists", "as_strings", "is_batch", "takes_lists"]

END = "\ue000"
"""A character that no template writes by itself."""


def is_batch(messages: Sequence[Any]) -> bool:
    """Return whether these are several conversations, and not one."""
    return bool(messages) and isinstance(messages[0], list | tuple)


def as_strings(
    messages: Sequence[Mapping[str, Any]], specialists: Mapping[str, SpecialistProcessor]
) -> tuple[list[dict[str, Any]], dict[str, list[Any]]]:
    """Return a conversation whose contents are strings, and its inputs by modality, in their order.

    Where an image is, its specialist's mark-up is. Items without the image itself are only marked.

    Raises:
        RequestError: an item's type is neither text nor one of the modalities; or these are no messages.
    """
    if isinstance(messages, str) or not all(isinstance(message, Mapping) for message in messages):
        what = f"a conversation is {str(messages)[:80]!r}"
        hint = 'write a list of messages, such as {"role": "user", "content": …}'
        raise RequestError(Problem(what, "apply_chat_template", hint))
    numbers: Counter[str] = Counter()
    inputs: dict[str, list[Any]] = {name: [] for name in specialists}

    def written(item: Any) -> str:
        kind = _kind(item)
        if kind == "text":
            _check_text(item, specialists)
            return str(item["text"])
        if kind not in specialists:
            what = f"content of type {item['type']!r}; there are {few(['text', *specialists], 9)}"
            raise RequestError(Problem(what, "apply_chat_template"))
        numbers[kind] += 1
        inputs[kind] += _values(item, kind)
        return markup(specialists[kind], numbers[kind])

    strings = [_with_content(message, written) for message in messages]
    return strings, inputs


def as_lists(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a conversation each of whose contents is a list of one text, where it is a string."""

    def content(value: Any) -> Any:
        return [{"type": "text", "text": value}] if isinstance(value, str) else value

    return [{key: content(x) if key == "content" else x for key, x in m.items()} for m in messages]


def takes_lists(render: Callable[[list[dict[str, Any]]], Any]) -> bool:
    """Return whether a chat template leaves out contents that are strings, and writes those that are lists.

    Templates of processors may do so: they look for a message's images among its items. `render` returns the
    prompt of a conversation.
    """
    from jinja2 import TemplateError

    def writes(content: Any) -> bool:
        try:
            return END in str(render([{"role": "user", "content": content}]))
        except (TemplateError, TypeError, ValueError):
            return False

    return not writes(END) and writes([{"type": "text", "text": END}])


def markup(specialist: SpecialistProcessor, number: int) -> str:
    """Return how a prompt writes the `number`-th input of a conversation, counted from 1.

    It is what the recipe says; or what the specialist's own chat template adds for it to a message with one
    input less (`Audio 2: <|audio_bos|><|AUDIO|><|audio_eos|>` of Qwen2-Audio); or the placeholder alone.
    """
    if specialist.markup:
        return specialist.markup
    before, after = (_beginning(specialist, count) for count in (number - 1, number))
    added = after.removeprefix(before)
    fits = after.startswith(before) and added.count(specialist.placeholder) == 1
    return added if fits else specialist.placeholder


def _beginning(specialist: SpecialistProcessor, count: int) -> str:
    """Return what the specialist's template writes up to a text that follows so many inputs."""
    from jinja2 import TemplateError

    content = [*({"type": specialist.kind} for _ in range(count)), {"type": "text", "text": END}]
    try:
        rendered = specialist.processor.apply_chat_template([{"role": "user", "content": content}])
    except (TemplateError, TypeError, ValueError):  # none, or one that takes strings alone
        return ""
    return str(rendered).partition(END)[0]


def _kind(item: Any) -> str:
    """Return what an item of a content is, such as `text`; raise `RequestError` where it does not say it."""
    kind = item.get("type") if isinstance(item, Mapping) else None
    if not isinstance(kind, str) or (kind == "text" and item.get("text") is None):
        what = f"an item of a message's content is {str(item)[:80]!r}"
        hint = 'write {"type": "text", "text": …}, or another type with its input'
        raise RequestError(Problem(what, "apply_chat_template", hint))
    return kind.removesuffix("_url")


def _check_text(item: Mapping[str, Any], specialists: Mapping[str, SpecialistProcessor]) -> None:
    """Raise `RequestError` where an item of text holds an input besides, which would be left out."""
    if held := [name for name in specialists if item.get(name) is not None]:
        what = f"an item of text holds {few(held)} besides"
        hint = f'write an item of its own for it, {{"type": "{held[0]}", "{held[0]}": …}}'
        raise RequestError(Problem(what, "apply_chat_template", hint))


def _with_content(message: Mapping[str, Any], written: Callable[[Any], str]) -> dict[str, Any]:
    content = message.get("content")
    if isinstance(content, Mapping):
        what = "a message's content is an item by itself"
        raise RequestError(Problem(what, "apply_chat_template", "write a list of one item"))
    if not isinstance(content, list | tuple):
        return dict(message)
    return {**message, "content": "".join(map(written, content))}


def _values(item: Mapping[str, Any], kind: str) -> list[Any]:
    """Return the input that an item holds, or names, as a list of one; nothing where it only marks one."""
    for key in (kind, f"{kind}_url", "url", "path", "base64"):
        if item.get(key) is not None:
            value = item[key]
            return [value["url"] if isinstance(value, dict) and "url" in value else value]
    return []
