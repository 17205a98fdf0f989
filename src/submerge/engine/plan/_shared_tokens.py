"""One tokenizer for a language model and its specialists: the base's, with all tokens that they add."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from submerge.deferred import required
from submerge.engine.plan._model_tokens import (
    ModelTokens,
    TokenFlags,
    load_tokenizer,
    placeholder_ids,
    read_tokens,
)
from submerge.engine.plan._tables import token_rows
from submerge.engine.plan._vocabulary_problems import vocabulary_problems
from submerge.errors import Problem, RequestError, few
from submerge.store import Checkpoint, Tokenizer

__all__ = ["SharedToken", "SharedTokens", "add_shared_tokens", "share_tokens"]


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
    """

    tokenizer: Tokenizer
    added: tuple[SharedToken, ...] = ()
    rows: int = 0
    lines: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

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
    sharing = _Sharing(base, [name for name, _ in specialists])
    sharing.check_placeholders(placeholders)
    ours = sharing.read(base, base.label)
    if ours is None:
        return SharedTokens(base.tokenizer), sharing.problems
    texts = [*placeholders, *[None] * (len(specialists) - len(placeholders))]
    models = [model for _, model in specialists]
    vocabularies = [
        sharing.of_specialist(name, model, text, ours)
        for (name, model), text in zip(specialists, texts, strict=True)
    ]
    if sharing.problems:
        return SharedTokens(base.tokenizer), sharing.problems
    return sharing.shared(ours, models, vocabularies), sharing.problems


def add_shared_tokens(tokenizer: Any, tokens: Iterable[tuple[str, TokenFlags]]) -> None:
    """Add tokens to a tokenizer of transformers, in this order, as each is to be treated."""
    added = required("tokenizers", "the tokenizer of a composed model needs").AddedToken
    tokenizer.add_tokens([added(text, **vars(flags)) for text, flags in tokens])


@dataclass
class _Sharing:
    """Compares specialists' tokens with the base's, numbers new ones, and notes what is wrong."""

    base: Checkpoint
    names: Sequence[str]
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def check_placeholders(self, placeholders: Sequence[str | None]) -> None:
        """Note specialists whose inputs a prompt would mark alike."""
        named = [(text, name) for text, name in zip(placeholders, self.names, strict=False) if text]
        for i, (text, name) in enumerate(named):
            for other in (other for same, other in named[:i] if same == text):
                what = f"{other} and {name} both mark their inputs with {text!r}"
                hint = "train one of them with a token of its own, or name another with 'placeholder:'"
                self.problems.append(Problem(what, name, hint))

    def read(self, model: Checkpoint, label: str) -> ModelTokens | None:
        """Return the tokens of a model's tokenizer, or None after noting why it has none."""
        self.problems += model.tokenizer.links.values()
        if not model.tokenizer.complete:
            hint = "copy the tokenizer's files into the folder"
            self.problems.append(Problem("there is no tokenizer here", label, hint))
        elif not model.tokenizer.links:  # what they lead to is neither read nor copied
            try:
                return read_tokens(model)
            except RequestError as error:
                self.problems += error.problems
        return None

    def of_specialist(
        self, name: str, model: Checkpoint, placeholder: str | None, base: ModelTokens
    ) -> ModelTokens:
        """Return the tokens of a specialist, after noting in what they differ from the base's."""
        own: ModelTokens | None = ModelTokens(base.ids, base.added, complete=False)
        if model.tokenizer.complete or model.tokenizer.links:
            own = self.read(model, name)
            self.problems += [] if own is None else vocabulary_problems(name, own, self.base.label, base)
        elif not placeholder_ids(model.config):
            self.problems.append(
                Problem("there is no tokenizer here, and no configuration that names tokens", name)
            )
        return base if own is None else self._with_placeholders(name, model, placeholder, own)

    def _with_placeholders(
        self, name: str, model: Checkpoint, placeholder: str | None, own: ModelTokens
    ) -> ModelTokens:
        """Return a specialist's tokens with those that its configuration alone names."""
        known = set(own.ids.values())
        unknown = {kind: id_ for kind, id_ in placeholder_ids(model.config).items() if id_ not in known}
        texts: dict[str, int] = {}
        for kind, id_ in unknown.items():
            text = placeholder if placeholder and len(unknown) == 1 else f"<{kind}>"
            if text in own.ids or text in texts:
                what = (
                    f"its configuration gives {kind} the id {id_}, and {text!r} is {own.ids.get(text, id_)}"
                )
                self.problems.append(Problem(what, name, "add its tokenizer to the folder, with this token"))
            texts[text] = id_
            self.warnings.append(
                f"{name}: no tokenizer names its token {id_} ({kind}): it is called {text!r}"
            )
        return ModelTokens(
            {**own.ids, **texts}, {**own.added, **dict.fromkeys(texts, TokenFlags())}, own.complete
        )

    def shared(
        self, base: ModelTokens, models: Sequence[Checkpoint], vocabularies: Sequence[ModelTokens]
    ) -> SharedTokens:
        """Return the tokens of all, numbered; note those that no model has a row for."""
        rows = token_rows(self.base.tensors)
        if rows is None:
            what = "none of its tensors is known to have a row for each token"
            self.problems.append(Problem(what, self.base.label, "name a language model as the base"))
            return SharedTokens(self.base.tokenizer)
        flags = self._new_flags(base, vocabularies)
        ids = self._numbered(base, flags)
        beyond = {text: id_ for text, id_ in base.ids.items() if id_ >= rows}
        added = [
            SharedToken(
                text=text,
                id=id_,
                flags=flags.get(text) or base.added.get(text, TokenFlags()),
                owners={n: own.ids[text] for n, own in enumerate(vocabularies) if text in own.ids},
            )
            for text, id_ in sorted((beyond | ids).items(), key=lambda item: item[1])
        ]
        self._check_rows(added, rows, models)
        return SharedTokens(
            tokenizer=self.base.tokenizer,
            added=tuple(added),
            rows=max([rows, *(token.id + 1 for token in added)]),
            lines=tuple(self._line(n, added) for n in range(len(self.names))),
            warnings=tuple(self.warnings),
        )

    def _new_flags(self, base: ModelTokens, vocabularies: Sequence[ModelTokens]) -> dict[str, TokenFlags]:
        """Return how each token that is not the base's is treated, in the order in which they are added."""
        flags: dict[str, TokenFlags] = {}
        for name, own in zip(self.names, vocabularies, strict=True):
            new = (text for text in own.ids if text not in base.ids)
            for text in sorted(new, key=own.ids.__getitem__):
                if flags.setdefault(text, own.added[text]) != own.added[text]:
                    first = next(
                        n for n, other in zip(self.names, vocabularies, strict=True) if text in other.ids
                    )
                    self.warnings.append(
                        f"{name}: {text!r} is treated as in {first}, which strips or splits otherwise"
                    )
        return flags

    def _numbered(self, base: ModelTokens, flags: Mapping[str, TokenFlags]) -> dict[str, int]:
        """Return the ids that transformers gives to new tokens of the base's tokenizer."""
        tokenizer = load_tokenizer(self.base.tokenizer.folder)
        add_shared_tokens(tokenizer, flags.items())
        vocabulary = tokenizer.get_vocab()
        ids = {text: vocabulary.get(text, -1) for text in flags}
        used = set(base.ids.values())
        if wrong := [repr(text) for text, id_ in ids.items() if id_ in used or id_ < 0]:
            what = f"transformers has no id of their own for new tokens here ({few(wrong)})"
            hint = "its ids have holes: save it anew with ids without one"
            self.problems.append(Problem(what, str(self.base.tokenizer.folder), hint))
        return ids

    def _check_rows(self, added: Sequence[SharedToken], rows: int, models: Sequence[Checkpoint]) -> None:
        """Note ids that no model has a row for."""
        own_rows = [token_rows(model.tensors) or 0 for model in models]
        bare = [t for t in added if not any(own < own_rows[n] for n, own in t.owners.items())]
        if bare:
            what = f"no model has a row for {few([f'{token.text!r} ({token.id})' for token in bare])}"
            hint = "give the specialist these rows (transformers: resize_token_embeddings)"
            owner = next(iter(bare[0].owners), None)
            self.problems.append(Problem(what, self.base.label if owner is None else self.names[owner], hint))
        last = max((token.id for token in added), default=-1)
        if holes := sorted(set(range(rows, last)) - {token.id for token in added}):
            what = f"ids {few(map(str, holes))} have neither a token nor a row, and tokens come after them"
            self.problems.append(
                Problem(what, self.base.label, "save its tokenizer anew with ids without a hole")
            )

    def _line(self, number: int, added: Sequence[SharedToken]) -> str:
        """Return what is said of a specialist's tokens."""
        own = [(t.text, t.owners[number], t.id) for t in added if number in t.owners]
        ids = [f"{text} {id_}" + ("" if id_ == new else f" → {new}") for text, id_, new in own]
        return f"{self.names[number]}: {few(ids, 8) or 'no tokens but those of the base'}"
