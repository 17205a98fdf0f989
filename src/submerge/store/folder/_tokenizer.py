"""The files of a folder that are its tokenizer's: known by their names, or code that its settings name."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from submerge.errors import Problem
from submerge.store.format import lenient_json

__all__ = ["SENTENCEPIECE_FILES", "TIKTOKEN", "Tokenizer", "is_tokenizer_file", "named_code"]

TIKTOKEN = "tiktoken.model"
"""A file of ranks, as those whose names end with `.tiktoken`."""

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
        TIKTOKEN,
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
_CODE = re.compile(r"tokenization\w*\.py")
_IMPORT = re.compile(r"^\s*from\s+\.(\w+)\s+import\b|^\s*import\s+\.(\w+)\s*$", re.MULTILINE)
"""What transformers takes for another file of the same folder."""


def is_tokenizer_file(path: PurePath) -> bool:
    """Return True if a file, by its path inside a model's folder, is its tokenizer's; chat templates are."""
    if path.parent.parts:
        return path.parent.parts == (_TEMPLATES,)
    return path.name in _BESIDE_THEM or _is_vocabulary(path) or _CODE.fullmatch(path.name) is not None


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
        listed = list(files)
        code = _code(folder, listed, links)
        own = tuple(file for file in listed if is_tokenizer_file(file) or file in code)
        unsafe = {file: why for file, why in links.items() if is_tokenizer_file(file) or file in code}
        return cls(folder, own, unsafe)

    @property
    def missing(self) -> tuple[str, ...]:
        """Code that its settings name, and that the folder lacks."""
        return tuple(str(file) for file in named_code(self.folder) if file not in (*self.files, *self.links))

    @property
    def complete(self) -> bool:
        """Whether there are tokens, and not only a template or settings."""
        return any(map(_is_vocabulary, (*self.files, *self.links)))


def named_code(folder: Path) -> tuple[Path, ...]:
    """Return the modules in the folder of the classes that `tokenizer_config.json` names (`auto_map`)."""
    classes = lenient_json(folder / "tokenizer_config.json").get("auto_map")
    classes = classes.get("AutoTokenizer") if isinstance(classes, Mapping) else classes
    named = classes if isinstance(classes, list) else [classes]
    # what lies in another repository is written repo--module.Class
    own = (name for name in named if isinstance(name, str) and "--" not in name)
    modules = (name.rpartition(".")[0] for name in own)
    return tuple(dict.fromkeys(Path(f"{module}.py") for module in modules if module.isidentifier()))


def _code(folder: Path, files: Collection[Path], links: Collection[Path]) -> set[Path]:
    """Return the files of a folder's tokenizer that are code, with those that they import from there."""
    if not any(file.suffix == ".py" for file in (*files, *links)):
        return set()
    found: set[Path] = set()
    wanted = list(named_code(folder))
    while wanted:
        file = wanted.pop()
        if file not in found and (file in files or file in links):
            found.add(file)
            wanted += _imports(folder / file) if file in files else ()
    return found


def _imports(path: Path) -> Iterator[Path]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for match in _IMPORT.finditer(text):
        yield Path(f"{match[1] or match[2]}.py")
