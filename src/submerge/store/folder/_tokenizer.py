"""The files of a folder that are its tokenizer's, known by their names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from submerge.errors import Problem

__all__ = ["SENTENCEPIECE_FILES", "Tokenizer", "is_tokenizer_file"]

SENTENCEPIECE_FILES = (
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "sentencepiece.model",
    "spm.model",
    "spm_char.model",
    "source.spm",
    "target.spm",
)
_VOCABULARIES = frozenset(
    {
        "tokenizer.json",
        "vocab.json",
        "vocab.txt",
        "tokenizer.model.v3",
        "tekken.json",
        *SENTENCEPIECE_FILES,
    }
)
_BESIDE_THEM = frozenset(
    {
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "merges.txt",
        "bpe.codes",
        "dict.txt",
        "target_vocab.json",
        "entity_vocab.json",
        "normalizer.json",
        "emoji.json",
        "byte_maps.json",
        "word_shape.json",
        "word_pronunciation.json",
        "chat_template.json",
        "chat_template.jinja",
    }
)
_TEMPLATES = "additional_chat_templates"


def is_tokenizer_file(path: PurePath) -> bool:
    """Return True if a file, by its path inside a model's folder, is its tokenizer's; chat templates are."""
    if path.parent.parts:
        return path.parent.parts == (_TEMPLATES,)
    return path.name in _BESIDE_THEM or _is_vocabulary(path)


def _is_vocabulary(path: PurePath) -> bool:
    return path.name in _VOCABULARIES or path.suffix == ".tiktoken"


@dataclass(frozen=True)
class Tokenizer:
    """The tokenizer's files in a folder, by their paths inside; `links` says why some must not be copied."""

    folder: Path
    files: tuple[Path, ...] = ()
    links: Mapping[Path, Problem] = field(default_factory=dict)

    @classmethod
    def among(cls, folder: Path, files: Iterable[Path], links: Mapping[Path, Problem]) -> Tokenizer:
        """Return the tokenizer of a folder, among all files beside its weights."""
        own = tuple(filter(is_tokenizer_file, files))
        return cls(folder, own, {file: why for file, why in links.items() if is_tokenizer_file(file)})

    @property
    def complete(self) -> bool:
        """Whether there are tokens, and not only a template or settings."""
        return any(map(_is_vocabulary, (*self.files, *self.links)))
