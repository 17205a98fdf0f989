"""Chat messages in the forms in which they are written, as transformers' chat templates take them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from submerge.errors import Problem, RequestError

__all__ = ["IMAGE", "Message", "as_parts", "read_messages"]

Message: TypeAlias = Mapping[str, Any]
"""`role`, and `content`: a text, or a list of parts, each a text or an image:
`{"type": "text", "text": …}`, `{"type": "image", "image": …}`."""

IMAGE = "<image>"
"""Stands in a text for an image, as the data of LLaVA have it."""

_ROLES = {
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "bot", "model", "function_call"), "assistant"),
    "observation": "tool",
}
"""What ShareGPT's form, and those that came of it, call the roles."""

_ASKING = ("user", "system", "developer", "tool", "function", "ipython", "assistant")
"""The roles of which it is known whether they answer. Others are for a template to know."""

_FORM = '[{"role": "user", "content": "…"}]'


def read_messages(
    value: Any,
    images: Sequence[Any] = (),
    where: str = "",
    *,
    resolve: Callable[[Any], Any] = lambda image: image,
) -> list[Message]:
    """Return a conversation up to the answer that is to come: answers at its end are removed.

    `images` are those that stand beside it in the row. Each takes the place of an `<image>`, or of a part of
    type `image` that names none, in order; where there are no such places, all come before the first text of
    the user. `resolve` makes of the images that parts name what `images` are. Raises `RequestError` where
    something is malformed, there are not as many places as images, or it is not known whether the last
    message is an answer.

    Examples:
        >>> from submerge.calibrate._messages import read_messages
        >>> read_messages([{"from": "human", "value": "2 + 3 = ?"}, {"from": "gpt", "value": "5"}])
        [{'role': 'user', 'content': '2 + 3 = ?'}]
    """
    if not isinstance(value, (list, tuple)) or not all(isinstance(message, Mapping) for message in value):
        raise RequestError(Problem("its messages are no list of objects", where, _FORM))
    reader = _MessageReader(images, where, resolve)
    count = _count_to_the_answer(value)
    _check_last(value[:count], where)
    messages = [reader.message(message) for message in value[:count]]
    first = next((at for at, message in enumerate(messages) if message["role"] == "user"), None)
    if first is None:
        raise RequestError(Problem("its messages have none of the user", where, _FORM))
    if images and not reader.placed:
        parts = [*map(_image_part, images), *_parts(messages[first])]
        messages[first] = {**messages[first], "content": parts}
    elif reader.placed < len(images):
        what = f"there are {len(images)} images for {reader.placed} placeholders"
        raise RequestError(Problem(what, where, f"write {IMAGE} for each"))
    if not any(_says_something(message) for message in messages if message["role"] == "user"):
        raise RequestError(
            Problem("its messages of the user are empty", where, "fill one, or leave the row out")
        )
    has_images = any(isinstance(message["content"], list) for message in messages)
    return as_parts(messages) if has_images else messages


def _count_to_the_answer(messages: Sequence[Message]) -> int:
    """Return how many messages come before the answers at the end, which may have any content."""
    count = len(messages)
    while count and _role(messages[count - 1]) == "assistant":
        count -= 1
    return count


def _check_last(messages: Sequence[Message], where: str) -> None:
    """Raise `RequestError` where the last message may be an answer by another name, which would be read."""
    role = _role(messages[-1]) if messages else None
    if role is not None and role not in _ASKING:
        what = f"its messages end with the role {role!r}, and it is not known whether that answers"
        hint = "call who asks user, and who answers assistant; or leave the last message out"
        raise RequestError(Problem(what, where, hint))


def _role(message: Message) -> Any:
    """Return who speaks; columns of a data set that others of its rows have are None."""
    role = message.get("role") or message.get("from")
    if not isinstance(role, str):
        return None
    lower = _ROLES.get(role.lower(), role.lower())
    return lower if lower in _ASKING else role


def as_parts(messages: Sequence[Message]) -> list[Message]:
    """Return messages whose contents are all lists of parts."""
    return [{**message, "content": _parts(message)} for message in messages]


def _parts(message: Message) -> list[Any]:
    content = message["content"]
    return content if isinstance(content, list) else [_text_part(content)] if content else []


def _says_something(message: Message) -> bool:
    return any(part["type"] == "image" or part["text"].strip() for part in _parts(message))


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _image_part(image: Any) -> dict[str, Any]:
    return {"type": "image", "image": image}


class _MessageReader:
    """Reads the messages of one row, and puts the images that stand beside them into their places."""

    def __init__(self, images: Sequence[Any], where: str, resolve: Callable[[Any], Any]) -> None:
        self._images, self._where, self._resolve = images, where, resolve
        self.placed = 0

    def message(self, message: Message) -> Message:
        """Return a message with role and content; what else it has (`name`, `tool_calls`) stays."""
        role, content = _role(message), message.get("content")
        if role is None:
            raise RequestError(Problem("a message has no role", self._where, _FORM))
        content = message.get("value") if content is None else content
        if content is None and role == "assistant":  # which called a tool
            content = ""
        rest = {key: v for key, v in message.items() if key not in ("from", "value") and v is not None}
        return {**rest, "role": role, "content": self._content(content)}

    def _content(self, content: Any) -> str | list[Any]:
        """Return a text, or a list of parts where images are among them."""
        if isinstance(content, str):
            return self._split(content) if self._images and IMAGE in content else content
        if not isinstance(content, (list, tuple)):
            what = "a message's content is neither a text nor a list of parts"
            raise RequestError(Problem(what, self._where, _FORM))
        parts = [self._part(part) for part in content]
        if any(part["type"] == "image" for part in parts):
            return parts
        return "\n".join(part["text"] for part in parts)

    def _split(self, text: str) -> list[Any]:
        """Return a text's parts, with an image for each placeholder."""
        first, *others = (part.strip("\n") for part in text.split(IMAGE))
        parts = [_text_part(first)]
        for other in others:
            parts += [_image_part(self._next()), _text_part(other)]
        return [part for part in parts if part["type"] == "image" or part["text"].strip()]

    def _part(self, part: Any) -> dict[str, Any]:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            return _text_part(part["text"])
        if kind not in ("image", "image_url"):
            what = f"a part of a message is of type {kind}, which cannot be read"
            raise RequestError(Problem(what, self._where, "there are text and image"))
        image = next((part[key] for key in ("image", "path", "url", "image_url") if part.get(key)), None)
        image = image["url"] if isinstance(image, Mapping) and "url" in image else image
        if image is None and part.get("base64"):
            image = f"data:image/*;base64,{part['base64']}"
        return _image_part(self._next() if image is None else self._resolve(image))

    def _next(self) -> Any:
        """Return the image that takes the next place."""
        if self.placed == len(self._images):
            what = "there are more placeholders than images"
            raise RequestError(Problem(what, self._where, "name as many in the column image"))
        self.placed += 1
        return self._images[self.placed - 1]
