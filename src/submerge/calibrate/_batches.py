"""Items as batches of a model's inputs, by the tokenizer or the processor of its folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

from submerge.calibrate._encode import MAX_LENGTH, encode
from submerge.calibrate._item import Item
from submerge.calibrate._spaced import spaced
from submerge.deferred import torch

__all__ = ["Batch", "EncodedItems", "batches"]

SIZE = 32


@dataclass(frozen=True)
class Batch:
    """The inputs of a model for some of the items; row i of each tensor is that of `items[places[i]]`."""

    inputs: dict[str, torch.Tensor]
    places: tuple[int, ...]


def batches(
    items: Sequence[Item], processor: Any, size: int = SIZE, *, max_length: int = MAX_LENGTH
) -> Iterator[Batch]:
    """Yield batches of at most `size` items, each item once; call it again for another pass over them.

    Single texts come first, then pairs: a tokenizer takes either, but not both in one call, and an item must
    be encoded as it is alone. Within either the order is that of the items. Nothing is held from one batch
    to the next, and images are read when their batch is asked for. The tensors are on the CPU: whoever runs
    the model moves them.

    Args:
        items: items of one kind, with or without their tasks.
        processor: the model's tokenizer, its image processor where the items are images, or its processor
            for both.
        size: how many items a batch has at most.
        max_length: how many tokens a text has at most, if the tokenizer does not allow less.

    Raises:
        RequestError: an item cannot be read, or there are images, and the package pillow is missing.

    Examples:
        >>> import transformers
        >>> from submerge.calibrate import Item, batches
        >>> tokenizer = transformers.BertTokenizer({"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "a": 4})
        >>> items = [Item("a"), Item("a a", "a"), Item("a a a")]
        >>> for batch in batches(items, tokenizer):
        ...     print(batch.places, tuple(batch.inputs["input_ids"].shape))
        (0, 2) (2, 5)
        (1,) (1, 6)
    """
    for places in _groups(items, size):
        yield Batch(encode([items[place] for place in places], processor, max_length=max_length), places)


def _groups(items: Sequence[Item], size: int) -> list[tuple[int, ...]]:
    """Return the places of the items of each batch."""
    singles = [place for place, item in enumerate(items) if not item.text_pair]
    pairs = [place for place, item in enumerate(items) if item.text_pair]
    return [
        tuple(places[start : start + size])
        for places in (singles, pairs)
        for start in range(0, len(places), size)
    ]


class EncodedItems(Sequence[Mapping[str, torch.Tensor]]):
    """The inputs of `batches` as a sequence, each encoded when it is asked for.

    With `room`, so many bytes of them are held for the passes to come: they are the same objects then. With
    None nothing is held.
    """

    def __init__(
        self, items: Sequence[Item], processor: Any, size: int, max_length: int, room: int | None = None
    ) -> None:
        self.items = items
        self._processor, self._size, self._max_length, self._room = processor, size, max_length, room
        self._groups = _groups(items, size)
        self._held: dict[int, Mapping[str, torch.Tensor]] = {}

    def spaced(self, most: int) -> EncodedItems:
        """Return at most so many of the items, evenly spaced, with nothing held; itself if it has no more."""
        if len(self.items) <= most:
            return self
        return EncodedItems(spaced(self.items, most), self._processor, self._size, self._max_length)

    def holding(self, room: int) -> EncodedItems:
        """Return the same, of which so many bytes are held; itself where it holds some already."""
        if self._room is not None:
            return self
        return EncodedItems(self.items, self._processor, self._size, self._max_length, room)

    def __len__(self) -> int:
        return len(self._groups)

    @overload
    def __getitem__(self, index: int) -> Mapping[str, torch.Tensor]: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Mapping[str, torch.Tensor]]: ...

    def __getitem__(self, index: int | slice) -> Any:
        places = range(len(self))[index]
        return [self._batch(place) for place in places] if isinstance(places, range) else self._batch(places)

    def _batch(self, place: int) -> Mapping[str, torch.Tensor]:
        if (held := self._held.get(place)) is not None:
            return held
        chosen = [self.items[number] for number in self._groups[place]]
        batch = encode(chosen, self._processor, max_length=self._max_length)
        if self._room is not None:
            size = sum(getattr(value, "nbytes", 0) for value in batch.values())
            if size <= self._room:
                self._held[place], self._room = batch, self._room - size
        return batch
