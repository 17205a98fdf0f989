"""What ends the text of a model that is made of several: the tokens at which `generate` stops."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from submerge.store import Checkpoint, read_json, text_parts

__all__ = ["further_ends", "text_ends"]

_KEY = "eos_token_id"
_GENERATION = "generation_config.json"


def text_ends(model: Checkpoint) -> list[int] | None:
    """Return the tokens at which a model's `generate` stops, as transformers finds them.

    Those of its `generation_config.json`; where there is none, of `config.json`, of whose parts the outermost
    that names some counts. None where that names none: it is a default of the model's class. Raises
    `RequestError` for a file that is broken.
    """
    beside = model.path / _GENERATION
    if beside.is_file():
        return _listed(read_json(beside))
    return next((ids for part in text_parts(model.config) if (ids := _listed(part))), None)


def further_ends(
    base: Checkpoint, specialists: Iterable[tuple[Checkpoint, Mapping[int, int]]], special: Iterable[int]
) -> Iterator[list[int]]:
    """Yield for each specialist the tokens that end its text, and neither the base's nor an earlier one's.

    With a specialist is the output's id of each token that it adds, by its own. Of `special` tokens only,
    which have the output's ids: a word that is named so is a class's default. Nothing ends further where it
    is not known what ends the base's text.
    """
    of_base = text_ends(base)
    known, allowed = {*(of_base or ())}, {*special} if of_base is not None else set()
    for model, ids in specialists:
        own = [ids.get(id_, id_) for id_ in text_ends(model) or ()]
        new = [id_ for id_ in dict.fromkeys(own) if id_ in allowed and id_ not in known]
        known.update(new)
        yield new


def _listed(part: Mapping[str, Any]) -> list[int]:
    """Return the ids that a configuration names: one, or several."""
    value = part.get(_KEY)
    return [id_ for id_ in (value if isinstance(value, list) else [value]) if type(id_) is int]
