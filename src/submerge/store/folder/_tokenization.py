"""How the tokenizer of a folder cuts texts into tokens, as far as its files say it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from submerge.store.folder._byte_tokens import TEKKEN
from submerge.store.folder._sentencepiece import rules_digest
from submerge.store.folder._tokenizer import SENTENCEPIECE_FILES
from submerge.store.format import lenient_json

__all__ = ["Tokenization", "read_tokenization", "unlike_settings"]

_KEYS = (
    "do_lower_case",
    "strip_accents",
    "tokenize_chinese_chars",
    "keep_accents",
    "remove_space",
    "add_prefix_space",
    "add_bos_token",
    "add_eos_token",
)
"""What `tokenizer_config.json` says of it; what it leaves out is a default of the tokenizer's class."""
_SPLIT = "split_special_tokens"
_PARTS = ("normalizer", "pre_tokenizer", "post_processor")
_FLAGS = ("lstrip", "rstrip", "normalized", "single_word")


@dataclass(frozen=True)
class Tokenization:
    """How the tokenizer of a folder cuts texts.

    Attributes:
        folder: where it lies.
        settings: what `tokenizer_config.json` says.
        implied: the same, as `tokenizer.json` does it.
        steps: of `tokenizer.json` by name, and of `tekken.json`: what is done with a text beside its tokens.
        merges: the pairs of a byte-pair model in their order; of what texts they are joined.
        scores: of a unigram model, by the pieces.
        added: how added tokens are found in a text.
        rules: a digest of the pieces and rules of each SentencePiece file.
    """

    folder: Path
    settings: Mapping[str, bool] = field(default_factory=dict)
    implied: Mapping[str, bool] = field(default_factory=dict)
    steps: Mapping[str, Any] = field(default_factory=dict)
    merges: tuple[tuple[str, str], ...] | None = None
    scores: Mapping[str, float] | None = None
    added: Mapping[str, tuple[bool, ...]] = field(default_factory=dict)
    rules: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_fast(self) -> bool:
        """Whether a `tokenizer.json` says all of it."""
        return (self.folder / "tokenizer.json").is_file()


def read_tokenization(folder: Path, *, steps: bool = True) -> Tokenization:
    """Return how the tokenizer of a folder cuts texts; what a broken file would say is left out.

    Without `steps` nothing of its `tokenizer.json` is read.
    """
    settings = lenient_json(folder / "tokenizer_config.json")
    table = lenient_json(folder / "tokenizer.json") if steps else {}
    model = table["model"] if isinstance(table.get("model"), dict) else {}
    of_model = {key: value for key, value in model.items() if key not in ("vocab", "merges") and value}
    tekken = lenient_json(folder / TEKKEN).get("config")
    pattern = tekken.get("pattern") if isinstance(tekken, dict) else None
    told = {name: table[name] for name in _PARTS if table.get(name)}
    return Tokenization(
        folder=folder,
        settings={key: settings[key] for key in (*_KEYS, _SPLIT) if isinstance(settings.get(key), bool)},
        implied=_implied(table) if table else {},
        steps=told | ({"model": of_model} if of_model else {}) | ({"pattern": pattern} if pattern else {}),
        merges=_merges(folder, model),
        scores=_scores(model),
        added=dict(_added(table)),
        rules=dict(_rules(folder)),
    )


def unlike_settings(own: Tokenization, other: Tokenization) -> dict[str, tuple[bool, bool]]:
    """Return what two tokenizers' configurations say of cutting texts, and not alike: own and other.

    What one of them does not say counts where its `tokenizer.json` does it, and the other has none.
    """
    found = {}
    for key in _KEYS:
        told = [_told(one, key, beside) for one, beside in ((own, other), (other, own))]
        if None not in told and told[0] != told[1]:
            found[key] = (bool(told[0]), bool(told[1]))
    split = bool(own.settings.get(_SPLIT)), bool(other.settings.get(_SPLIT))
    return found | ({_SPLIT: split} if split[0] != split[1] else {})


def _told(one: Tokenization, key: str, beside: Tokenization) -> bool | None:
    """Return a setting; None where it is not known, or two files of one form say it better."""
    return one.settings.get(key, None if beside.is_fast else one.implied.get(key))


def _implied(table: Mapping[str, Any]) -> dict[str, bool]:
    """Return what the steps of a `tokenizer.json` do, by the names that configurations have for it."""
    normal = list(_steps(table.get("normalizer")))
    before = list(_steps(table.get("pre_tokenizer")))
    after = list(_steps(table.get("post_processor")))
    template: Any = next((step["single"] for step in after if "single" in step), [])
    items = template if isinstance(template, list) else ()
    kinds = [next(iter(item), "") for item in items if isinstance(item, dict)]
    spaces = [step["add_prefix_space"] for step in before if "add_prefix_space" in step]
    spaces += [step["prepend_scheme"] != "never" for step in before if "prepend_scheme" in step]
    return {
        "do_lower_case": any(s.get("type") == "Lowercase" or s.get("lowercase") is True for s in normal),
        "add_prefix_space": any(spaces) or any(step.get("type") == "Prepend" for step in normal),
        "add_bos_token": kinds[:1] == ["SpecialToken"],
        "add_eos_token": kinds[-1:] == ["SpecialToken"],
    }


def _steps(part: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the steps of a part, which may stand in sequences."""
    if isinstance(part, list):
        for inner in part:
            yield from _steps(inner)
    elif isinstance(part, dict):
        yield part
        yield from _steps([inner for inner in part.values() if isinstance(inner, list)])


def _merges(folder: Path, model: Mapping[str, Any]) -> tuple[tuple[str, str], ...] | None:
    """Return the pairs of a model, of `tokenizer.json`, or of `merges.txt` where there is none."""
    listed = model.get("merges")
    if not isinstance(listed, list) and not (folder / "tokenizer.json").is_file():
        listed = _lines(folder / "merges.txt")
    if not isinstance(listed, list):
        return None
    pairs = [row.split(" ") if isinstance(row, str) else row for row in listed]
    return tuple((str(pair[0]), str(pair[1])) for pair in pairs if isinstance(pair, list) and len(pair) == 2)


def _lines(path: Path) -> list[str] | None:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:  # most often there is none
        return None
    return [line.rstrip("\r") for line in lines if not line.startswith("#version")]


def _scores(model: Mapping[str, Any]) -> dict[str, float] | None:
    rows = model.get("vocab")
    if not isinstance(rows, list):
        return None
    pairs = (row for row in rows if isinstance(row, list) and len(row) == 2)
    return {text: float(score) for text, score in pairs if isinstance(score, int | float)}


def _added(table: Mapping[str, Any]) -> Iterator[tuple[str, tuple[bool, ...]]]:
    rows = table.get("added_tokens")
    for row in rows if isinstance(rows, list) else ():
        if isinstance(row, dict) and isinstance(row.get("content"), str):
            yield row["content"], tuple(bool(row.get(flag)) for flag in _FLAGS)


def _rules(folder: Path) -> Iterator[tuple[str, str]]:
    for name in SENTENCEPIECE_FILES:
        if (folder / name).is_file():
            yield name, rules_digest(folder / name)
