"""Items as batches of a model's inputs, by the tokenizer or the image processor of its folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from submerge.calibrate._items import Item
from submerge.deferred import required, torch
from submerge.errors import Problem, RequestError

__all__ = ["Batch", "batches", "encode", "load_processor"]

SIZE = 32
MAX_LENGTH = 512
"""Tokens to which texts are cut."""


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
        items: texts or images, with or without their tasks.
        processor: the model's tokenizer, or its image processor where the items are images.
        size: how many items a batch has at most.
        max_length: how many tokens a text has at most, if the tokenizer does not allow less.

    Raises:
        RequestError: the items are images, and the package pillow is missing.

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
    singles = [place for place, item in enumerate(items) if not item.text_pair]
    pairs = [place for place, item in enumerate(items) if item.text_pair]
    for places in (singles, pairs):
        for start in range(0, len(places), size):
            chosen = places[start : start + size]
            inputs = encode([items[place] for place in chosen], processor, max_length=max_length)
            yield Batch(inputs, tuple(chosen))


def encode(items: Sequence[Item], processor: Any, *, max_length: int = MAX_LENGTH) -> dict[str, torch.Tensor]:
    """Return a model's inputs for items of one kind, padded to the longest of them.

    That is `input_ids` [B, L], `attention_mask` [B, L] and what else the tokenizer gives, or `pixel_values`
    [B, 3, h, w] of an image processor, whose images are converted to RGB.
    """
    images = [item.image for item in items if item.image is not None]
    if images:
        opened = map(required("PIL.Image", "images need").open, images)
        return dict(processor(images=[image.convert("RGB") for image in opened], return_tensors="pt"))
    pairs = [item.text_pair for item in items]
    encoded = processor(
        [item.text for item in items],
        pairs if all(pairs) else None,
        padding=True,
        truncation=True,
        max_length=min(max_length, processor.model_max_length),
        return_tensors="pt",
    )
    return dict(encoded)


def load_processor(folder: Path, *, images: bool) -> Any:
    """Return the image processor or the tokenizer of a model's folder, as transformers loads it.

    A tokenizer without a padding token pads with its end of text. Raises `RequestError` where the folder has
    none, or transformers is missing.
    """
    transformers = required("transformers", "the inputs need")
    kind = transformers.AutoImageProcessor if images else transformers.AutoTokenizer
    try:
        processor = kind.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        what = f"there is no {'image processor' if images else 'tokenizer'} ({str(error).splitlines()[0]})"
        hint = "copy the base's into the folder"
        raise RequestError(Problem(what, str(folder), hint)) from error
    if not images and processor.pad_token is None:
        processor.pad_token = processor.eos_token
    return processor
