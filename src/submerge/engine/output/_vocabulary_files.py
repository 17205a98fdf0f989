"""The files of a merged vocabulary: the tokenizer with all tokens, and configurations with their ids."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from submerge.engine.output._added_tokens import check_ids, list_added_tokens
from submerge.engine.output._text_files import edit_json, write_json, write_text
from submerge.engine.plan import OutputVocabulary, with_token_ids
from submerge.store import edited_text_parts, optional_json, read_vocabulary, with_vocabulary_size

__all__ = ["write_vocabulary_files"]


def write_vocabulary_files(vocabulary: OutputVocabulary, reference: int, folder: Path) -> None:
    """Write the vocabulary over the files of a folder, which are those that were copied into it.

    `tokenizer.json` gets the tokens, `tokenizer_config.json` the class that is to load it, config.json
    `vocab_size`, and both configurations the ids that tokens of the model at the position `reference` have
    now, or those of a donor's special tokens. For one that the output lacks they get what the tokenizer's own
    model has under the same key. Raises `WorkError` if a token has another id in the tokenizer that was
    written than the row that was merged for it.
    """
    tokenizer = vocabulary.tokenizer
    if tokenizer.text is not None:
        write_text(folder / "tokenizer.json", tokenizer.text)
        list_added_tokens(
            folder, tokenizer.ids, {text: vars(flags) for text, flags in tokenizer.added.items()}
        )
    if tokenizer.kind is not None:
        path = folder / "tokenizer_config.json"
        settings = optional_json(path)
        write_json(path, {**settings, "tokenizer_class": tokenizer.kind})
    ids = vocabulary.ids[reference]

    def renumbered(part: Mapping[str, Any], special: Mapping[str, Any]) -> dict[str, Any]:
        known = {key: id_ for key, id_ in special.items() if key in part or id_ is not None}
        return with_token_ids(part, ids, vocabulary.token_ids) | known

    of_config = partial(renumbered, special=vocabulary.special.config)

    def of_all(config: Mapping[str, Any]) -> dict[str, Any]:
        return with_vocabulary_size(edited_text_parts(config, of_config), vocabulary.rows)

    edit_json(folder / "config.json", of_all)
    edit_json(folder / "generation_config.json", partial(renumbered, special=vocabulary.special.generation))
    _check(vocabulary, folder)


def _check(vocabulary: OutputVocabulary, folder: Path) -> None:
    """Compare the ids of the tokenizer that was written with the rows that were merged."""
    written = read_vocabulary(folder)
    tokens = None if written is None else written.tokens
    if tokens is None:  # a sentencepiece file, copied byte for byte
        return
    check_ids(folder, vocabulary.tokenizer.ids, tokens, "tokenizers")
