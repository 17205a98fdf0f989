"""The files of a composed model beside its weights: the shared tokenizer, and a folder for each modality."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory
from typing import Any

from submerge.engine.output._added_tokens import check_ids, list_added_tokens
from submerge.engine.output._text_files import copy_file, edit_json, write_json
from submerge.engine.plan import SharedTokens, add_tokens, with_token_ids
from submerge.store import (
    MODALITIES,
    edited_text_parts,
    is_tokenizer_file,
    load_tokenizer,
    read_json,
    with_vocabulary_size,
)

__all__ = ["ModalityFiles", "write_ends", "write_modality_files"]

_PROCESSOR = frozenset(
    {"preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"}
)
_TOKENIZER_CONFIG = "tokenizer_config.json"
_OF_PROCESSOR = frozenset({"processor_class", "padding_side", "chat_template", "extra_special_tokens"})
"""What a processor takes from its tokenizer's configuration, beside the tokens that have a name there."""


@dataclass(frozen=True)
class ModalityFiles:
    """A specialist's files that are not weights, by their paths in its folder, and its configuration."""

    name: str
    folder: Path
    files: tuple[Path, ...]
    config: Mapping[str, Any]


def write_modality_files(tokens: SharedTokens, modalities: Sequence[ModalityFiles], folder: Path) -> None:
    """Write the tokenizer and the configurations of a composed model into its folder.

    At the root: the base's tokenizer with the tokens that were added, and one that fills up if it has none;
    `vocab_size` in config.json, if that is there; and where `generate` stops. In `modalities/NAME`: the
    processor's files of specialist n, which is `modalities[n]`; its configuration, whose token ids are those
    of the shared tokenizer; and that tokenizer.

    Raises `WorkError` if the tokenizer that was written has another id for a token than was planned.
    """
    _write_tokenizer(tokens, folder)
    edit_json(folder / "config.json", lambda config: with_vocabulary_size(config, tokens.rows))
    write_ends(tokens.ends, folder)
    for number, modality in enumerate(modalities):
        _write_modality(modality, tokens.ids(number), tokens.rows, folder)
    for place in (folder, *(folder / MODALITIES / modality.name for modality in modalities)):
        planned = {token.text: token.id for token in tokens.added}
        check_ids(place, planned, load_tokenizer(place).get_vocab(), "transformers")


def _write_tokenizer(tokens: SharedTokens, folder: Path) -> None:
    """Write the base's tokenizer with the added tokens.

    Of what transformers saves, the vocabulary alone is taken: the configuration stays the base's, for that
    which a version writes may be of no use to an earlier one.
    """
    source = tokens.tokenizer
    for file in source.files:
        copy_file(source.folder, file, folder)
    if tokens.pad is not None and (config := folder / _TOKENIZER_CONFIG).is_file():
        write_json(config, {**read_json(config), "pad_token": tokens.pad})
    tokenizer = load_tokenizer(source.folder)
    known = tokenizer.get_vocab()
    new = [token for token in tokens.added if token.text not in known]
    if not new:
        return
    add_tokens(tokenizer, [(token.text, token.flags) for token in new])
    with TemporaryDirectory() as saved:
        tokenizer.save_pretrained(saved)
        for path in Path(saved).iterdir():
            beside = not (folder / path.name).exists() and not _is_template(path)
            if path.name == "tokenizer.json" or beside:
                shutil.copyfile(path, folder / path.name)
    ids = {token.text: token.id for token in new}
    list_added_tokens(folder, ids, {token.text: vars(token.flags) for token in new})


def write_ends(ends: Sequence[int], folder: Path) -> None:
    """Let `generate` stop at further tokens than those at which the base ends its text."""
    if not ends:
        return
    path = folder / "generation_config.json"
    path = path if path.is_file() else folder / "config.json"
    config = read_json(path)
    own = config.get("eos_token_id")
    listed = own if isinstance(own, list) else [] if own is None else [own]
    write_json(path, {**config, "eos_token_id": [*listed, *ends]})


def _write_modality(modality: ModalityFiles, ids: Mapping[int, int], rows: int, root: Path) -> None:
    """Write the folder of one modality, after the tokenizer at the root."""
    folder = root / MODALITIES / modality.name
    folder.mkdir(parents=True, exist_ok=True)
    for file in modality.files:
        if file.as_posix() in _PROCESSOR or _is_template(file):
            copy_file(modality.folder, file, folder)
    for file in (path.relative_to(root) for path in root.iterdir() if path.is_file()):
        if is_tokenizer_file(file) and not _is_template(file):
            copy_file(root, file, folder)
    config = edited_text_parts(modality.config, lambda part: with_token_ids(part, ids))
    write_json(folder / "config.json", with_vocabulary_size(config, rows))
    own, shared = modality.folder / _TOKENIZER_CONFIG, folder / _TOKENIZER_CONFIG
    if shared.is_file() and Path(_TOKENIZER_CONFIG) in modality.files:
        write_json(shared, _for_processor(read_json(shared), read_json(own)))


def _for_processor(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tokenizer's configuration with what a specialist's processor looks for in its own.

    That is its class, its template, and tokens that the tokenizer has under a name, as `image_token`.
    """
    config = {key: value for key, value in shared.items() if key != "chat_template"}
    taken = {
        key: value
        for key, value in own.items()
        if key in _OF_PROCESSOR or (key.endswith("_token") and config.get(key) is None)
    }
    return config | taken


def _is_template(path: PurePath) -> bool:
    return path.name.startswith("chat_template.") or "additional_chat_templates" in path.parts
