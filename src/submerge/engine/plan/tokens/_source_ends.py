"""Where a text ends by the tokenizer of another model than the base, whose configurations the output has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from submerge.engine.plan.inputs import Inputs, TokenizerSource
from submerge.engine.plan.tokens._text_ends import text_ends
from submerge.engine.plan.tokens._token_keys import token_text
from submerge.engine.plan.tokens._vocabulary import OutputVocabulary
from submerge.store import optional_json, read_vocabulary

__all__ = ["source_ends"]


def source_ends(
    inputs: Inputs,
    source: TokenizerSource,
    vocabulary: OutputVocabulary | None = None,
    tokens: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Return the special tokens that end a text of the tokenizer's model, and none of the base: text → id.

    A chat model ends its turns with another token than the base ends its texts, and `generate` goes by
    `generation_config.json`, which is the base's. What the tokenizer calls `eos_token` counts, and what the
    configurations of its model do. Empty where both are the base's, or where that does not say what ends its
    text, for then that is a default of its class. Ids are those of the output, of which `tokens` are; without
    them the source's own are.
    """
    base, folder = inputs.reference_model, source.model.tokenizer.folder
    of_base = text_ends(base)
    if of_base is None or folder == base.path:
        return {}
    own = read_vocabulary(folder)
    if own is None or own.tokens is None:
        return {}
    moved: Mapping[int, int | None] = vocabulary.ids[inputs.reference] if vocabulary else {}
    known = {moved.get(id_, id_) for id_ in of_base}
    ids = vocabulary.tokenizer.ids if vocabulary else tokens or own.tokens
    texts = {id_: text for text, id_ in own.tokens.items()}
    config = optional_json(folder / "tokenizer_config.json")
    named = [token_text(config.get("eos_token")), *(texts.get(id_) for id_ in text_ends(source.model) or ())]
    special = _special(folder, config)
    ends = {text: ids[text] for text in named if text in special and text in ids}
    return {text: id_ for text, id_ in ends.items() if id_ not in known}


def _special(folder: Path, config: Mapping[str, Any]) -> set[str]:
    """Return the texts of the tokens that are no words, by the tokenizer's files."""
    decoder = config.get("added_tokens_decoder")
    listed = optional_json(folder / "tokenizer.json").get("added_tokens")
    rows = [*(decoder.values() if isinstance(decoder, Mapping) else ()), *(listed or ())]
    return {
        row["content"]
        for row in rows
        if isinstance(row, Mapping) and row.get("special") and isinstance(row.get("content"), str)
    }
