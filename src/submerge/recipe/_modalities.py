"""What a recipe says of modalities: the keys of a specialist, and whether a composed model can be made."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from submerge.methods import Method
from submerge.recipe._model_entry import ModelEntry, same_model
from submerge.recipe._problems import KeyPath, Report, show
from submerge.recipe._sections import OutputForm
from submerge.recipe._specs import RENAME, read_spec

__all__ = ["ModalityTokens", "SpecialistKeys", "check_composition", "read_modality_tokens", "read_specialist"]

ModalityTokens: TypeAlias = Literal["own", "merged"]
"""What tokens of a modality run with: their specialist's own parameters, or the merged language model's."""

_NAME = re.compile(r"(?!(?:text|language)$)[A-Za-z][A-Za-z0-9_-]*")
"""A modality's name; text and language are those of the language model itself."""
_PLURALS = {"images": "image", "videos": "video"}
_DECOUPLED = ("language_lora", "modality_lora")
_CHOICES: tuple[ModalityTokens, ...] = ("own", "merged")


@dataclass(frozen=True)
class SpecialistKeys:
    """What an entry of `models` says of a modality: the fields of `ModelEntry` that only a specialist has."""

    modality: str = ""
    language_lora: str = ""
    modality_lora: str = ""
    placeholder: str = ""


def read_specialist(raw: dict[str, Any], path: KeyPath, report: Report) -> SpecialistKeys:
    """Return the keys of a specialist in an entry of `models`; what cannot be is noted."""
    given = [key for key in (*_DECOUPLED, "placeholder") if raw.get(key) is not None]
    if raw.get("modality") is None:
        for key in given:
            what = f"{key!r} says something of a specialist, and this entry names no modality"
            report.add(what, (*path, key), "add 'modality: image', say, or remove the key")
        return SpecialistKeys()
    if raw.get("lora") is not None and set(_DECOUPLED) & set(given):
        what = "'lora' is one adapter for all tokens, and a second one is given for some of them"
        report.add(what, (*path, "lora"), "keep 'lora' alone, or 'language_lora' and 'modality_lora'")
    return SpecialistKeys(
        modality=_text(raw, "modality", path, report, _NAME),
        language_lora=_adapter(raw, "language_lora", path, report),
        modality_lora=_adapter(raw, "modality_lora", path, report),
        placeholder=_text(raw, "placeholder", path, report),
    )


def _text(
    raw: dict[str, Any], key: str, path: KeyPath, report: Report, form: re.Pattern[str] | None = None
) -> str:
    """Return a key's text, or an empty one after noting that it has none of the right form."""
    value = raw.get(key)
    if value is None:
        return ""
    if isinstance(value, str) and value.strip() and (form is None or form.fullmatch(value)):
        return value
    hint = "a word such as image, audio or video" if form else "write '<image>', say"
    report.add(f"{key} is {show(value)}", (*path, key), hint)
    return ""


def _adapter(raw: dict[str, Any], key: str, path: KeyPath, report: Report) -> str:
    """Return the adapter that a key names, or an empty text."""
    if raw.get(key) is None:
        return ""
    spec = read_spec(raw[key], (*path, key), report)
    if spec is not None and "+" in spec:
        hint = f"name the adapter alone; {RENAME}"
        report.add(f"{show(spec)} is an adapter on a model", (*path, key), hint)
        return ""
    return spec or ""


def read_modality_tokens(data: dict[str, Any], report: Report) -> ModalityTokens:
    """Return what tokens of a modality run with: their specialist's own parameters, or the merged ones."""
    raw = data.get("modality_tokens")
    if raw is None:
        return "own"
    for choice in _CHOICES:
        if raw == choice:
            return choice
    report.add(f"modality_tokens is {show(raw)}", ("modality_tokens",), f"one of {', '.join(_CHOICES)}")
    return "own"


def check_composition(
    data: dict[str, Any],
    method: Method | None,
    entries: Sequence[ModelEntry],
    base: str | None,
    form: OutputForm,
    report: Report,
) -> None:
    """Note why no composed model can come of the entries, if one of them names a modality."""
    if not any(entry.modality for entry in entries):
        if data.get("modality_tokens") is not None:
            what = "'modality_tokens' is given, and no model has a modality"
            report.add(what, ("modality_tokens",), "add 'modality: …' to each model, or remove the key")
        return
    _check_entries(entries, base, report)
    if data.get("base_model") is None and not (method and method.needs_base):
        hint = "add 'base_model: …', the language model that all specialists have"
        report.add("a composed model needs a base_model", ("models",), hint)
    if method is not None and method.gate:
        what = f"{method.name} has a gate of its own, and so has a composed model"
        report.add(what, ("merge_method",), "take a method without one, such as ssam or task_arithmetic")
    if form.form == "adapter":
        what = "a composed model has encoders, and an adapter has no place for them"
        report.add(what, ("output",), "write a checkpoint; leave out 'modality' to merge the adapters alone")
    for key, plain in (("tokenizer_source", "base"), ("tokenizer", {"source": "base"})):
        if data.get(key) not in (None, plain):
            what = "a composed model has the base's tokenizer, and the tokens that specialists added"
            report.add(what, (key,), "remove the key")
    if data.get("modality_tokens") == "merged":
        for place, entry in enumerate(entries):
            if entry.modality_lora:
                what = "modality_lora is for tokens that modality_tokens: merged gives the merged model"
                report.add(what, ("models", place, "modality_lora"), "keep one of the two keys")


def _check_entries(entries: Sequence[ModelEntry], base: str | None, report: Report) -> None:
    """Note entries without a modality, modalities that stand there twice, and the base among the entries."""
    names = Counter(entry.modality for entry in entries if entry.modality)
    for place, entry in enumerate(entries):
        path: KeyPath = ("models", place)
        if not entry.modality and not report.has((*path, "modality")):
            what = f"{entry.model} has no modality, and others have one"
            report.add(what, path, "give each model 'modality: …', or none")
        if base is not None and same_model(entry.model) == same_model(base):
            what = f"{entry.model} is the base, which has no modality"
            report.add(what, path, "remove the entry: text is the base's")
    for name, count in names.items():
        if count > 1:
            what = f"{count} specialists have the modality {show(name)}"
            hint = "keep one; or call them image and image2, say, if their placeholders differ"
            report.add(what, ("models",), hint)
    for alike in _alike(names):
        what = f"the modalities {' and '.join(map(show, alike))} would have one argument, or one folder"
        report.add(what, ("models",), "call them image and image2, say")


def _alike(names: Iterable[str]) -> list[list[str]]:
    """Return names that are one to processors, whose argument for `image` is `images`, or to some disks."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[_PLURALS.get(name.casefold(), name.casefold())].append(name)
    return [group for group in groups.values() if len(group) > 1]
