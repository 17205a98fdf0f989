"""In what a specialist's vocabulary is not its base's with added tokens."""

from __future__ import annotations

from collections.abc import Iterator

from submerge.engine.plan.tokens._model_tokens import ModelTokens
from submerge.errors import Problem, counted, few

__all__ = ["vocabulary_problems"]

_OTHER = "its vocabulary is not the base's"
_HINT = "merge specialists of one language model, and name that as the base"


def vocabulary_problems(name: str, own: ModelTokens, label: str, base: ModelTokens) -> list[Problem]:
    """Return why the rows of a specialist's tables are not those of the base, called `label`.

    Tokens that were added to either may be absent from the other. All others, and those that both have, must
    have one id.
    """
    return [
        Problem(
            f"its vocabulary is not the base's: {counted(len(shown), 'token')} {what} ({few(shown)})",
            name,
            _HINT,
        )
        for what, shown in _differences(own, label, base)
        if shown
    ]


def _differences(own: ModelTokens, label: str, base: ModelTokens) -> Iterator[tuple[str, list[str]]]:
    """Yield each way to differ, with the tokens that do, by their ids."""
    of_base = {id_: text for text, id_ in base.ids.items()}
    new = {text: id_ for text, id_ in own.ids.items() if text not in base.ids}
    moved = {text: id_ for text, id_ in own.ids.items() if base.ids.get(text, id_) != id_}
    yield (
        f"with other ids than in {label}",
        [f"{text!r}: {id_} here, {base.ids[text]} there" for text, id_ in moved.items()],
    )
    yield (
        f"with ids that {label} has for others",
        [f"{text!r}: {id_}, there {of_base[id_]!r}" for text, id_ in new.items() if id_ in of_base],
    )
    yield (
        f"that {label} lacks, and that are no added tokens",
        [repr(text) for text in new if text not in own.added],
    )
    yield (
        f"fewer than in {label}",
        [repr(text) for text in base.ids if text not in own.ids and text not in base.added],
    )
