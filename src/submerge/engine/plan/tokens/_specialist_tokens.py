"""The tokens of a base and of its specialists, read and compared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from submerge.engine.plan.tokens._model_tokens import ModelTokens, TokenFlags, placeholder_ids, read_tokens
from submerge.engine.plan.tokens._tables import token_rows
from submerge.engine.plan.tokens._vocabulary_problems import vocabulary_problems
from submerge.errors import Problem, RequestError
from submerge.store import Checkpoint

__all__ = ["SpecialistTokens"]


@dataclass
class SpecialistTokens:
    """Reads the tokens of models, and notes what is wrong with them, or deserves a look."""

    base: Checkpoint
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def read(self, model: Checkpoint, label: str) -> ModelTokens | None:
        """Return the tokens of a model's tokenizer, or None after noting why it has none."""
        self.problems += model.tokenizer.links.values()
        if not model.tokenizer.complete:
            hint = "copy the tokenizer's files into the folder"
            self.problems.append(Problem("there is no tokenizer here", label, hint))
        elif not model.tokenizer.links:  # what they lead to is neither read nor copied
            try:
                return read_tokens(model.tokenizer.folder)
            except RequestError as error:
                self.problems += error.problems
        return None

    def of(self, name: str, model: Checkpoint, placeholder: str | None, base: ModelTokens) -> ModelTokens:
        """Return the tokens of a specialist, after noting in what they differ from the base's.

        Those of one without a tokenizer are the base's, and what its configuration names.
        """
        if not model.tokenizer.complete:
            self.problems += model.tokenizer.links.values()
            if not placeholder_ids(model.config):
                what = "there is no tokenizer here, and no configuration that names tokens"
                self.problems.append(Problem(what, name, "copy the tokenizer's files into the folder"))
            return self._with_placeholders(name, model, placeholder, base)
        own = self.read(model, name)
        if own is None:
            return base
        self.problems += vocabulary_problems(name, own, self.base.label, base)
        return self._with_placeholders(name, model, placeholder, own)

    def _with_placeholders(
        self, name: str, model: Checkpoint, placeholder: str | None, own: ModelTokens
    ) -> ModelTokens:
        """Return a specialist's tokens with those that its configuration alone names."""
        unknown = dict(self._unknown(model, own))
        texts: dict[str, int] = {}
        for kind, id_ in unknown.items():
            is_meant = len(unknown) == 1 and placeholder not in own.ids  # else it is the modality's own
            text = placeholder if placeholder and is_meant else f"<{kind}>"
            if text in own.ids:
                what = f"its configuration gives {kind} the id {id_}, and {text!r} is {own.ids[text]}"
                self.problems.append(Problem(what, name, "add its tokenizer to the folder, with this token"))
            texts[text] = id_
            unnamed = f"no tokenizer names its token {id_} ({kind})"
            self.warnings.append(f"{name}: {unnamed}: it is called {text!r}")
        added = {**own.added, **dict.fromkeys(texts, TokenFlags())}
        return replace(own, ids={**own.ids, **texts}, added=added)

    def _unknown(self, model: Checkpoint, own: ModelTokens) -> Iterator[tuple[str, int]]:
        """Yield the tokens of a configuration that no tokenizer has.

        A tokenizer that lacks one for which there is no row either has no use for it: the id is a default of
        the class.
        """
        known, rows = set(own.ids.values()), token_rows(model.tensors) or 0
        for kind, id_ in placeholder_ids(model.config).items():
            if id_ not in known and (id_ < rows or not model.tokenizer.complete):
                yield kind, id_
