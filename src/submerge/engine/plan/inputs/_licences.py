"""The licences that the cards of models state, as the Hub reads them: `license` in their front matter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import yaml

from submerge.errors import few
from submerge.store import Checkpoint

__all__ = ["common_licence", "licence_warnings", "stated_licences"]

FIELDS = ("license", "license_name", "license_link")
MOST = 1 << 20
"""Bytes of a card that are looked at: the front matter of some lists a thousand results."""


def stated_licences(models: Sequence[Checkpoint]) -> dict[str, dict[str, str]]:
    """Return what the cards of models and of their adapters say of their licence, by their names.

    It is `license`, and `license_name` and `license_link` where they are there; nothing where no card is, or
    it says nothing. A card on the Hub alone is not fetched.
    """
    return {name: _stated(folder) for name, folder in dict(_places(models)).items() if name}


def common_licence(stated: Mapping[str, Mapping[str, str]]) -> Mapping[str, str]:
    """Return the licence that all models state; nothing where one states another, or none."""
    first, *others = stated.values() or [{}]
    return first if all(other == first for other in others) else {}


def licence_warnings(stated: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Return that models state different licences, of which a merge may have to keep all."""
    names: dict[str, list[str]] = {}
    for name, fields in stated.items():
        if fields:
            names.setdefault(fields.get("license_name") or fields["license"], []).append(name)
    if len(names) < 2:
        return []
    shown = "; ".join(f"{licence} ({few(of)})" for licence, of in names.items())
    return [
        f"the models state different licences: {shown}; the card of the result lists them, and names none"
    ]


def _places(models: Sequence[Checkpoint]) -> Iterator[tuple[str, Path]]:
    """Yield what models and their adapters are called, and their folders."""
    for model in models:
        below = model.under or model
        yield below.label, below.path
        if model.adapter is not None:
            yield model.adapter.label, model.adapter.path


def _stated(folder: Path) -> dict[str, str]:
    """Return what the card in a folder says of the licence."""
    try:
        with open(folder / "README.md", "rb") as file:
            text = file.read(MOST).decode("utf-8", "replace").replace("\r\n", "\n")
    except OSError:  # none, or a bare file
        return {}
    if not text.startswith("---\n") or (end := text.find("\n---", 3)) < 0:
        return {}
    try:
        front = yaml.safe_load(text[4:end])
    except (yaml.YAMLError, ValueError, RecursionError):  # which the Hub does not read either
        return {}
    if not isinstance(front, dict) or not isinstance(front.get("license"), str):
        return {}
    return {key: value for key in FIELDS if isinstance(value := front.get(key), str)}
