"""How a specialist's inputs stand in a text: the kind of its modality, and its placeholder token."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from submerge.engine.plan.inputs import Specialist
from submerge.errors import Problem
from submerge.store import Checkpoint, read_vocabulary

__all__ = ["KINDS", "PlaceholderToken", "clashing_placeholders", "find_placeholder"]

KINDS = ("image", "video", "audio")
SUFFIXES = ("token_id", "token_index")


@dataclass(frozen=True)
class PlaceholderToken:
    """The token that stands where an input's features go.

    Attributes:
        kind: the prefix of its key in the configuration, such as `image` of `image_token_id`.
        id: its id in the specialist's own vocabulary.
        token: its text in that vocabulary, or None where it has none.
        text: how a prompt marks an input: as the recipe says, else the token.
    """

    kind: str
    id: int
    token: str | None
    text: str


def find_placeholder(
    specialist: Specialist, model: Checkpoint
) -> tuple[PlaceholderToken | None, list[Problem]]:
    """Return the placeholder that a specialist's configuration names, or what is wrong with it."""
    config, modality = model.config or {}, specialist.modality
    named = {kind: id_ for kind in (modality, *KINDS) if (id_ := _token_id(config, kind)) is not None}
    where = str(model.path / "config.json")
    if not named:
        what = "it names no placeholder token, such as image_token_id or audio_token_id"
        return None, [Problem(what, where, "give a model that transformers loads, with its config.json")]
    if modality not in named and len(named) > 1:
        what = f"it has placeholders for {' and '.join(named)}, and the modality is called {modality!r}"
        hint = f"write 'modality: {next(iter(named))}', to say which of them is meant"
        return None, [Problem(what, specialist.where or where, hint)]
    kind = modality if modality in named else next(iter(named))
    token = _token_of(model, named[kind])
    text = specialist.placeholder or token or f"<{kind}>"
    return PlaceholderToken(kind, named[kind], token, text), []


def _token_id(config: Mapping[str, Any], kind: str) -> int | None:
    values = (config.get(f"{kind}_{suffix}") for suffix in SUFFIXES)
    # LLaVA's first code wrote −200 for a token that has no row
    return next((value for value in values if type(value) is int and value >= 0), None)


def _token_of(model: Checkpoint, id_: int) -> str | None:
    """Return the text of a token, or None where the model's tokenizer has none of this id."""
    vocabulary = read_vocabulary(model.path) if model.path.is_dir() else None
    if vocabulary is None:
        return None
    known = vocabulary.added if vocabulary.tokens is None else vocabulary.tokens
    return next((token for token, own in known.items() if own == id_), None)


def clashing_placeholders(ids: Mapping[str, int]) -> list[Problem]:
    """Return a problem for each id that is the placeholder of several modalities: they look alike."""
    owners: defaultdict[int, list[str]] = defaultdict(list)
    for modality, id_ in ids.items():
        owners[id_].append(modality)
    hint = "give one of them a token of its own: in its tokenizer, its processor and, by its id, config.json"
    return [
        Problem(f"{' and '.join(names)} have the same placeholder, token {id_}", "models", hint)
        for id_, names in owners.items()
        if len(names) > 1
    ]
