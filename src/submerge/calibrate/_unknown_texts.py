"""Texts of which a tokenizer knows no word, or whose ends are cut off: other inputs than they seem to be."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from submerge.calibrate._encode import count_tokens
from submerge.calibrate._item import Item
from submerge.calibrate._processors import tokenizer_of
from submerge.calibrate._spaced import spaced

__all__ = ["warn_of_cut", "warn_of_unknown"]

LOOKED_AT = 16
"""Texts of a data set that are encoded once more for this, evenly spaced."""


def warn_of_unknown(items: Sequence[Item], processor: Any, where: str) -> None:
    """Warn where half of the texts or more have no known token, as by the tokenizer of another model."""
    tokenizer = tokenizer_of(processor)
    unknown = getattr(tokenizer, "unk_token_id", None)
    texts = [item for item in spaced(items, LOOKED_AT) if item.text]
    if unknown is None or not texts:
        return
    lost = [item for item in texts if _is_lost(item.text, tokenizer, unknown)]
    if 2 * len(lost) < len(texts):  # a few may be of signs alone
        return
    count = f"{len(lost)} of {len(texts)} texts that were looked at are"
    what = f"{count} without a known token to the {type(tokenizer).__name__}, first {lost[0].text:.40}"
    hint = "is it the tokenizer of this model, and of this language?"
    warnings.warn(f"{where}: {what} — {hint}", UserWarning, stacklevel=2)


def warn_of_cut(items: Sequence[Item], processor: Any, where: str, max_length: int) -> None:
    """Warn where texts or chats without images have more tokens than they are cut at."""
    looked_at = [item for item in spaced(items, LOOKED_AT) if not item.images]
    if not looked_at:
        return
    try:
        most = min(max_length, tokenizer_of(processor).model_max_length)
        lengths = [count_tokens(item, processor) for item in looked_at]
    except Exception:  # tokenizers and templates raise what they like: the pass over the data tells of it
        return
    if longer := [length for length in lengths if length > most]:
        count = f"{len(longer)} of {len(lengths)} inputs that were looked at have more than {most} tokens"
        own = most < max_length
        hint = "the tokenizer allows no more" if own else f"max_length: {max(longer)} reads them all"
        what = f"{count}, and their ends are cut off — {hint}"
        warnings.warn(f"{where}: {what}", UserWarning, stacklevel=2)


def _is_lost(text: str, tokenizer: Any, unknown: int) -> bool:
    try:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    except Exception:  # tokenizers raise what they like: the pass over the data tells of it
        return False
    return all(one == unknown for one in ids)
