"""The tokenizers and processors of models' folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from submerge.calibrate._image_tokens import count_as_model
from submerge.calibrate._item import Item
from submerge.deferred import quietly, required
from submerge.errors import Problem, RequestError, first_line

__all__ = ["load_processor", "processor_for", "tokenizer_of"]

_CLASSES = {
    (False, True): ("AutoTokenizer", "tokenizer"),
    (True, False): ("AutoImageProcessor", "image processor"),
    (True, True): ("AutoProcessor", "processor"),
}
"""By whether there are images, and texts: the class of transformers, and what it loads."""


def load_processor(folder: Path, *, images: bool, texts: bool | None = None) -> Any:
    """Return the tokenizer, the image processor or the processor for both of a model's folder.

    `texts` is by default whether there are no images. A tokenizer without a padding token pads with its end
    of text. Raises `RequestError` where the folder has none, or transformers is missing.
    """
    transformers = required("transformers", "the inputs need")
    texts = not images if texts is None else texts
    name, what = _CLASSES[images, texts]
    try:
        with quietly(transformers.logging):
            processor = getattr(transformers, name).from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        what = f"there is no {what} ({first_line(error)})"
        raise RequestError(Problem(what, str(folder), "copy the base's into the folder")) from error
    if images and texts:
        count_as_model(processor, folder)
    if images and texts and not (hasattr(processor, "image_processor") and hasattr(processor, "tokenizer")):
        what = f"{type(processor).__name__} does not take images with texts"
        raise RequestError(Problem(what, str(folder), "give one of them: columns: {image: image}"))
    if texts and tokenizer_of(processor).pad_token is None:
        tokenizer_of(processor).pad_token = tokenizer_of(processor).eos_token
    return processor


def processor_for(item: Item, folder: Path) -> Any:
    """Return what encodes items of this one's kind, from a model's folder."""
    return load_processor(folder, images=bool(item.images), texts=item.kind != "images")


def tokenizer_of(processor: Any) -> Any:
    """Return a processor's tokenizer, or a tokenizer itself."""
    return getattr(processor, "tokenizer", processor)
