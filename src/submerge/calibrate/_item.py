"""One input of a user's data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from submerge.calibrate._images import ImageSource
from submerge.calibrate._messages import Message, as_parts

__all__ = ["KINDS", "ImageFile", "Item"]

ImageFile: TypeAlias = Path | ImageSource | Any
"""A path, an image within something else, or one of Pillow's."""

KINDS = ("texts", "chats", "images", "images with texts")
"""What is encoded in one way."""


@dataclass(frozen=True)
class Item:
    """One input: a text with perhaps a second one, a chat, an image, or images with a text or a chat.

    Args:
        text: a text; beside an image a question, or a complete prompt with the model's own placeholders.
        text_pair: a second text.
        image: the path of an image, or a tuple of several.
        task: its task, if that is known.
        messages: a chat up to the answer that is to come, in place of `text` and `image`.
        tools: what a chat may call, as its template takes them.
        where: where it stands, for messages of errors.

    Examples:
        >>> from submerge.calibrate import Item
        >>> Item(text="A dog runs.", text_pair="An animal moves.").shown
        'A dog runs. | An animal moves.'
        >>> Item(messages=({"role": "user", "content": "2 + 3 = ?"},)).kind
        'chats'
    """

    text: str = ""
    text_pair: str = ""
    image: ImageFile | tuple[ImageFile, ...] | None = None
    task: str = ""
    messages: tuple[Message, ...] = ()
    tools: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)
    where: str = field(default="", compare=False, repr=False)

    @property
    def images(self) -> tuple[ImageFile, ...]:
        """All images, in order; of a chat those of its messages."""
        if self.messages:
            return tuple(part["image"] for part in self._parts if part["type"] == "image")
        return self.image if isinstance(self.image, tuple) else () if self.image is None else (self.image,)

    @property
    def kind(self) -> str:
        """Which of `texts`, `chats`, `images` and `images with texts` it is one of."""
        if self.images:
            return "images with texts" if self.text or self.messages else "images"
        return "chats" if self.messages else "texts"

    @property
    def shown(self) -> str:
        """The input as one line."""
        chat = [part["text"] for part in self._parts if part["type"] == "text"]
        texts = " | ".join(t for t in (*map(str, self.images), self.text, self.text_pair, *chat) if t)
        return " ".join(texts.splitlines())

    @property
    def _parts(self) -> list[Mapping[str, Any]]:
        """The parts of all messages."""
        return [part for message in as_parts(self.messages) for part in message["content"]]
