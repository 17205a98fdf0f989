"""The files of a merged vocabulary: the tokenizer with all tokens, and configurations with their ids."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from submerge.engine.output._added_tokens import list_added_tokens, write_json
from submerge.engine.output._side_files import write_text
from submerge.engine.plan import OutputVocabulary, with_token_ids
from submerge.errors import WorkError, few
from submerge.store import edited_text_parts, read_json, read_vocabulary, with_vocabulary_size

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
        settings = read_json(path) if path.is_file() else {}
        write_json(path, {**settings, "tokenizer_class": tokenizer.kind})
    ids = vocabulary.ids[reference]

    def renumbered(part: Mapping[str, Any], special: Mapping[str, Any]) -> dict[str, Any]:
        known = {key: id_ for key, id_ in special.items() if key in part or id_ is not None}
        return with_token_ids(part, ids, vocabulary.token_ids) | known

    of_config = partial(renumbered, special=vocabulary.special.config)
    _edit(folder / "config.json", lambda config: _resized(edited_text_parts(config, of_config), vocabulary))
    _edit(folder / "generation_config.json", partial(renumbered, special=vocabulary.special.generation))
    _check(vocabulary, folder)


def _resized(config: Mapping[str, Any], vocabulary: OutputVocabulary) -> dict[str, Any]:
    return with_vocabulary_size(config, vocabulary.rows)


def _edit(path: Path, edit: Any) -> None:
    """Write a configuration anew where an edit changes it."""
    if path.is_file():
        config = read_json(path)
        if (edited := edit(config)) != config:
            write_json(path, edited)


def _check(vocabulary: OutputVocabulary, folder: Path) -> None:
    """Compare the ids of the tokenizer that was written with the rows that were merged."""
    written = read_vocabulary(folder)
    tokens = None if written is None else written.tokens
    if tokens is None:  # a sentencepiece file, copied byte for byte
        return
    planned = vocabulary.tokenizer.ids
    wrong = [f"{t!r}: {tokens.get(t)}, not {id_}" for t, id_ in planned.items() if tokens.get(t) != id_]
    if wrong:
        what = f"the tokenizer that was written numbers tokens otherwise than planned ({few(wrong)})"
        raise WorkError(f"{folder}: {what} — try another version of tokenizers")
