"""One tokenizer for a language model and its specialists: the base's, with all tokens that they add."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from submerge.engine.plan.tokens._model_tokens import ModelTokens, TokenFlags, add_tokens, ids_of_text
from submerge.engine.plan.tokens._specialist_tokens import SpecialistTokens
from submerge.engine.plan.tokens._tables import token_rows
from submerge.engine.plan.tokens._text_ends import further_ends
from submerge.errors import Problem, few
from submerge.store import Checkpoint, Tokenizer, load_tokenizer

__all__ = ["SharedToken", "SharedTokens", "share_tokens"]


@dataclass(frozen=True)
class SharedToken:
    """A token that the base has no row for: its text, its id in the output, and whose it is.

    `owners` has for the number of each specialist with this token its id there, in the specialists' order.
    """

    text: str
    id: int
    flags: TokenFlags
    owners: Mapping[int, int]

    @property
    def special(self) -> bool:
        """Whether decoding may leave it out."""
        return self.flags.special


@dataclass(frozen=True)
class SharedTokens:
    """The tokenizer of a composed model.

    Attributes:
        tokenizer: the base's files, which new tokens are added to.
        added: the tokens that the base's table has no row of its own for, in the order of their ids.
        rows: how many rows the output's tables have.
        lines: what is said of each specialist.
        warnings: what deserves a look.
        of_text: the ids that a text of the base has without any input: words, and what begins or ends it.
        ends: the ids at which specialists end their text, and the base does not.
        pad: the token that fills up shorter texts of a batch, where the base has none.
    """

    tokenizer: Tokenizer
    added: tuple[SharedToken, ...] = ()
    rows: int = 0
    lines: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    of_text: frozenset[int] = field(default=frozenset(), repr=False)
    ends: tuple[int, ...] = ()
    pad: str | None = None

    def ids(self, number: int) -> dict[int, int]:
        """Return the output's id of each token that a specialist adds, by its own; all others are alike."""
        return {token.owners[number]: token.id for token in self.added if number in token.owners}


def share_tokens(
    base: Checkpoint,
    specialists: Sequence[tuple[str, Checkpoint]],
    placeholders: Sequence[str | None] = (),
) -> tuple[SharedTokens, list[Problem]]:
    """Return the tokenizer that a base and its specialists share, and what is wrong with their tokens.

    The base's ids stay. Tokens that specialists add follow in the order in which transformers numbers new
    tokens, specialist by specialist, each by its own ids; one that several add has one id. A specialist whose
    vocabulary is not the base's, but for added tokens, is refused.

    Args:
        base: the language model.
        specialists: the name and the model of each.
        placeholders: the text that marks an input of each specialist, where it is known; no two may be alike.
    """
    names, models = [name for name, _ in specialists], [model for _, model in specialists]
    texts = [*placeholders, *[None] * (len(specialists) - len(placeholders))]
    nothing, reader = SharedTokens(base.tokenizer), SpecialistTokens(base)
    reader.problems += _alike(dict(zip(names, texts, strict=True)))
    ours, rows = reader.read(base, base.label), token_rows(base.tensors)
    if rows is None:
        what = "none of its tensors is known to have a row for each token"
        reader.problems.append(Problem(what, base.label, "name a language model as the base"))
    if ours is None or rows is None:
        return nothing, reader.problems
    theirs = [reader.of(*each, ours) for each in zip(names, models, texts, strict=True)]
    if reader.problems:
        return nothing, reader.problems
    numbering = _Numbering(ours, dict(zip(names, theirs, strict=True)), rows)
    added, problems = numbering.added(base.tokenizer.folder)
    problems = problems or _without_row(base, dict(specialists), added, rows)
    shared = SharedTokens(
        tokenizer=base.tokenizer,
        added=tuple(added),
        rows=max([rows, *(token.id + 1 for token in added)]),
        lines=tuple(_line(number, name, added) for number, name in enumerate(names)),
        warnings=(*reader.warnings, *numbering.warnings),
        of_text=ids_of_text(ours, base.config),
    )
    if problems:
        return shared, problems
    return _with_ends(_with_pad(shared, names, theirs, ours), base, dict(specialists), ours), problems


def _with_pad(
    shared: SharedTokens, names: Sequence[str], theirs: Sequence[ModelTokens], ours: ModelTokens
) -> SharedTokens:
    """Return the tokens with the first specialist's token that fills up, where the base has none."""
    pads = [(name, own.pad) for name, own in zip(names, theirs, strict=True) if own.pad is not None]
    if ours.pad is not None or not pads:
        return shared
    name, pad = pads[0]
    line = f"{name}: {pad} fills up the shorter texts of a batch: the base has no token for that"
    return replace(shared, pad=pad, lines=(*shared.lines, line))


def _with_ends(
    shared: SharedTokens, base: Checkpoint, specialists: Mapping[str, Checkpoint], ours: ModelTokens
) -> SharedTokens:
    """Return the tokens with what ends a text of specialists, beside what ends one of the base."""
    texts = {token.id: token.text for token in shared.added}
    texts |= {ours.ids[text]: text for text, flags in ours.added.items() if flags.special}
    each = ((model, shared.ids(number)) for number, model in enumerate(specialists.values()))
    ends, lines = list[int](), list[str]()
    for name, own in zip(specialists, further_ends(base, each, texts), strict=True):
        ends += own
        if own:
            lines.append(f"{name}: text ends at {few([f'{texts[id_]} {id_}' for id_ in own])}, too")
    return replace(shared, ends=tuple(ends), lines=(*shared.lines, *lines))


@dataclass(frozen=True)
class _Numbering:
    """Numbers the tokens that specialists add to a base's; `rows` are those of the base's table."""

    base: ModelTokens
    specialists: Mapping[str, ModelTokens]
    rows: int
    warnings: list[str] = field(default_factory=list)

    def added(self, folder: Path) -> tuple[list[SharedToken], list[Problem]]:
        """Return the tokens that the base has no row for, by their ids, and why new ones can have none.

        The ids of new tokens are those that transformers gives them, so that the tokenizer that is written
        has them, too.
        """
        flags = self._new()
        tokenizer = load_tokenizer(folder)
        add_tokens(tokenizer, flags.items())
        vocabulary, used = tokenizer.get_vocab(), set(self.base.ids.values())
        ids = {text: vocabulary[text] for text in flags}
        if taken := [f"{text!r} ({id_})" for text, id_ in ids.items() if id_ in used]:
            what = f"transformers gives new tokens ids that others have ({few(taken)})"
            return [], [Problem(what, str(folder), "its ids have holes: save it with ids without one")]
        ids |= {text: id_ for text, id_ in self.base.ids.items() if id_ >= self.rows}
        known = {**flags, **self.base.added}
        texts = sorted(ids, key=ids.__getitem__)
        return [SharedToken(t, ids[t], known.get(t, TokenFlags()), self._owners(t)) for t in texts], []

    def _new(self) -> dict[str, TokenFlags]:
        """Return how each token that is not the base's is treated, in the order in which they are added."""
        flags: dict[str, TokenFlags] = {}
        for name, own in self.specialists.items():
            new = (text for text in own.ids if text not in self.base.ids)
            for text in sorted(new, key=own.ids.__getitem__):
                if flags.setdefault(text, own.added[text]) != own.added[text]:
                    first = next(n for n, other in self.specialists.items() if text in other.ids)
                    what = f"{text!r} is treated as in {first}, whose tokenizer splits or strips it otherwise"
                    self.warnings.append(f"{name}: {what}")
        return flags

    def _owners(self, text: str) -> dict[int, int]:
        return {n: own.ids[text] for n, own in enumerate(self.specialists.values()) if text in own.ids}


def _alike(placeholders: Mapping[str, str | None]) -> list[Problem]:
    """Return a problem for each specialist whose inputs a prompt would mark as those of an earlier one."""
    first: dict[str, str] = {}
    hint = "give one of them a token of its own: in its tokenizer, its processor and, by its id, config.json"
    return [
        Problem(f"{first[text]} and {name} both mark their inputs with {text!r}", name, hint)
        for name, text in placeholders.items()
        if text and first.setdefault(text, name) != name
    ]


def _without_row(
    base: Checkpoint, specialists: Mapping[str, Checkpoint], added: Sequence[SharedToken], rows: int
) -> list[Problem]:
    """Return a problem for ids of the output that no model has a row for."""
    names, heights = list(specialists), [token_rows(model.tensors) or 0 for model in specialists.values()]
    problems = []
    hint = "give the model these rows (transformers: resize_token_embeddings)"
    if bare := [t for t in added if not any(own < heights[n] for n, own in t.owners.items())]:
        what = f"no model has a row for {few([f'{token.text!r} ({token.id})' for token in bare])}"
        owner = next(iter(bare[0].owners), None)
        problems.append(Problem(what, base.label if owner is None else names[owner], hint))
    ids = {token.id for token in added}
    if holes := [str(id_) for id_ in range(rows, max(ids, default=0)) if id_ not in ids]:
        what = f"the ids {few(holes)} have neither a token nor a row, and tokens come after them"
        problems.append(Problem(what, base.label, hint))
    return problems


def _line(number: int, name: str, added: Sequence[SharedToken]) -> str:
    """Return what is said of a specialist's tokens."""
    own = [(token.text, token.owners[number], token.id) for token in added if number in token.owners]
    ids = [f"{text} {id_}" + ("" if id_ == new else f" → {new}") for text, id_, new in own]
    return f"{name}: {few(ids, 8) or 'no tokens but those of the base'}"
