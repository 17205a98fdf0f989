"""Texts of which a tokenizer knows no word: what is measured of them says nothing of the data."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from submerge.calibrate._item import Item
from submerge.calibrate._processors import tokenizer_of
from submerge.calibrate._spaced import spaced

__all__ = ["warn_of_unknown"]

LOOKED_AT = 16
"""Texts of a data set that are encoded once more for this, evenly spaced."""


def warn_of_unknown(items: Sequence[Item], processor: Any, where: str) -> None:
    """Warn where half of the texts or more are unknown tokens alone, as by the tokenizer of another model."""
    tokenizer = tokenizer_of(processor)
    unknown = getattr(tokenizer, "unk_token_id", None)
    texts = [item for item in spaced(items, LOOKED_AT) if item.text]
    if unknown is None or not texts:
        return
    lost = [item for item in texts if _is_lost(item.text, tokenizer, unknown)]
    if 2 * len(lost) < len(texts):  # a few may be of signs alone
        return
    count = f"{len(lost)} of {len(texts)} texts that were looked at are"
    what = f"{count} unknown tokens alone to the {type(tokenizer).__name__}, first {lost[0].text:.40}"
    hint = "is it the tokenizer of this model, and of this language?"
    warnings.warn(f"{where}: {what} — {hint}", UserWarning, stacklevel=2)


def _is_lost(text: str, tokenizer: Any, unknown: int) -> bool:
    try:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    except Exception:  # tokenizers raise what they like: the pass over the data tells of it
        return False
    return bool(ids) and all(one == unknown for one in ids)
