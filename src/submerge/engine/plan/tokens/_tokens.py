"""Whose tokenizer the output has, and whether the models' tokens mean the same rows of its embedding."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from submerge.engine.plan.inputs import Inputs, TokenizerSource
from submerge.engine.plan.tokens._adapter_tokens import unlike_adapters
from submerge.engine.plan.tokens._chat_template import (
    choose_chat_template,
    lacking_tokens,
    template_owner,
    without_template,
)
from submerge.engine.plan.tokens._plan_transplant import plan_transplant
from submerge.engine.plan.tokens._plan_vocabulary import plan_vocabulary
from submerge.engine.plan.tokens._shared_tokens import SharedTokens
from submerge.engine.plan.tokens._source_ends import source_ends
from submerge.engine.plan.tokens._tables import token_rows
from submerge.engine.plan.tokens._vocabulary import OutputVocabulary
from submerge.errors import Problem, few
from submerge.recipe import Recipe, same_model
from submerge.store import (
    Checkpoint,
    Tokenizer,
    Vocabulary,
    compare_vocabularies,
    read_vocabulary,
    split_spec,
)

__all__ = [
    "TokenPlan",
    "beyond_rows",
    "describe_beyond",
    "plan_tokens",
    "shared_token_plan",
    "with_chat_template",
    "with_tables",
]


@dataclass(frozen=True)
class TokenPlan:
    """The tokenizer of the output, and what is said of the models' vocabularies.

    `lines` has one for each model that was compared. `beyond` are the tokens that the base's own embedding
    has no rows for, as it was published. `vocabulary` has the rows of its tokens, where those of the
    models are others. `chat_template` is the one that the recipe asks for, if the tokenizer's own does
    not stay. `ends` are the ids at which a text ends by a tokenizer of another model, and not by the base.
    """

    tokenizer: Tokenizer
    lines: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    beyond: tuple[str, ...] = ()
    vocabulary: OutputVocabulary | None = None
    chat_template: str | None = None
    ends: tuple[int, ...] = ()

    def with_ends(self, ends: Mapping[str, int]) -> TokenPlan:
        """Return the plan with further ends of texts, and a line that names them."""
        if not ends:
            return self
        line = f"text ends at {few([f'{text} {id_}' for text, id_ in ends.items()])}, too"
        return replace(self, ends=(*self.ends, *ends.values()), lines=(*self.lines, line))


def plan_tokens(recipe: Recipe, inputs: Inputs) -> tuple[TokenPlan | None, list[Problem]]:
    """Return the plan for the tokenizer that the recipe asks for, and what is wrong with it.

    The vocabulary of every model is compared with the output's. One that differs is refused, unless the rule
    says otherwise, or names the tokenizer's source: then the tables get a row for each of its tokens. An
    adapter has no tokenizer, and no plan for one; those whose tables mean other tokens are refused.
    """
    source = inputs.tokenizer
    if source is None:
        return None, unlike_adapters(recipe, inputs)
    tokenizer = source.model.tokenizer
    if tokenizer.links:  # what they lead to is neither read nor copied
        return TokenPlan(tokenizer), list(tokenizer.links.values())
    if recipe.tokenizer.new_tokens:
        return _of_vocabulary(tokenizer, *plan_transplant(recipe, inputs, source))
    ours = read_vocabulary(tokenizer.folder)
    if _gathers_rows(recipe, inputs, tokenizer, ours):
        return _by_tokens(recipe, inputs, source)
    lines, unlike, problems = _compare(recipe, inputs, source, ours)
    warnings, missing = _without_tokenizer(recipe, source)
    warnings, problems = [*unlike, *warnings], [*problems, *missing]
    rows = token_rows(inputs.reference_model.tensors)
    beyond = {} if ours is None or rows is None else ours.beyond(rows)
    published = _published(inputs.reference_model, ours, rows)
    if new := {token: place for token, place in beyond.items() if token not in published}:
        where = _fallback(recipe, inputs.specs[inputs.reference], source)
        problems.append(Problem(describe_beyond(new, rows or 0), source.label, where))
    elif beyond:
        warnings.append(f"{source.label}: {describe_beyond(beyond, rows or 0)}, as it was published")
    plan = TokenPlan(tokenizer, lines=tuple(lines), warnings=tuple(warnings), beyond=tuple(beyond))
    return plan.with_ends(source_ends(inputs, source)), problems


def _of_vocabulary(
    tokenizer: Tokenizer, vocabulary: OutputVocabulary | None, problems: list[Problem]
) -> tuple[TokenPlan, list[Problem]]:
    """Return the plan with a vocabulary, if there is one, and what is wrong with that."""
    if vocabulary is None:
        return TokenPlan(tokenizer), problems
    return TokenPlan(tokenizer, vocabulary.lines, vocabulary.warnings, vocabulary=vocabulary), problems


def _by_tokens(recipe: Recipe, inputs: Inputs, source: TokenizerSource) -> tuple[TokenPlan, list[Problem]]:
    """Return the plan where tables get a row for each of the output's tokens, and what is wrong with it."""
    tokenizer = source.model.tokenizer
    vocabulary, problems = plan_vocabulary(recipe, inputs, source)
    if vocabulary is not None and vocabulary.beyond:
        what = describe_beyond(vocabulary.beyond, token_rows(source.model.tensors) or 0)
        where = _fallback(recipe, inputs.specs[inputs.reference], source)
        return TokenPlan(tokenizer), [*problems, Problem(what, source.label, where)]
    plan, problems = _of_vocabulary(tokenizer, vocabulary, problems)
    return plan.with_ends(source_ends(inputs, source, vocabulary) if vocabulary else {}), problems


def _gathers_rows(recipe: Recipe, inputs: Inputs, tokenizer: Tokenizer, ours: Vocabulary | None) -> bool:
    """Return whether tables get other rows than the models have at the ids of the output's tokens."""
    if not recipe.gathers_rows:
        return False
    rows = {token_rows(model.tensors) for model in inputs.involved.values()}
    if ours is None or not tokenizer.complete or token_rows(inputs.reference_model.tensors) is None:
        return False
    under = inputs.reference_model.under
    is_resized = under is not None and token_rows(under.tensors) not in rows  # by an adapter, which saved all
    if recipe.tokenizer.changes_tables or is_resized or len(rows) > 1:
        return True
    theirs = (read_vocabulary(folder) for folder in _folders(inputs) if folder != tokenizer.folder)
    return not all(other is None or compare_vocabularies(ours, other).equal for other in theirs)


def _folders(inputs: Inputs) -> list[Path]:
    """Return the folders of the models' tokenizers, each once."""
    return list(dict.fromkeys(model.tokenizer.folder for model in inputs.involved.values()))


def shared_token_plan(tokens: SharedTokens) -> TokenPlan:
    """Return the plan for the tokenizer of a composed model."""
    return TokenPlan(tokens.tokenizer, tokens.lines, tokens.warnings)


def with_chat_template(plan: TokenPlan, recipe: Recipe, inputs: Inputs) -> TokenPlan:
    """Return the plan with the chat template that the recipe asks for."""
    text, described = choose_chat_template(recipe, inputs)
    if not described:
        told = without_template(plan.tokenizer, recipe, inputs)
        return replace(plan, warnings=(*plan.warnings, told)) if told else plan
    if not plan.tokenizer.complete:
        what = "chat_template: the output has no tokenizer that could carry it"
        return replace(plan, warnings=(*plan.warnings, what))
    known = _known_tokens(plan)
    transplanted = recipe.tokenizer.new_tokens is not None
    if text and known is not None and (told := lacking_tokens(text, known, transplanted=transplanted)):
        plan = replace(plan, warnings=(*plan.warnings, told))
    if text is not None and known and (owner := template_owner(text, inputs)) is not None:
        ends = source_ends(inputs, owner, plan.vocabulary, known)
        plan = plan.with_ends({token: id_ for token, id_ in ends.items() if id_ not in plan.ends})
    return replace(plan, chat_template=text, lines=(*plan.lines, f"chat template: {described}"))


def _known_tokens(plan: TokenPlan) -> Mapping[str, int] | None:
    """Return the tokens of the output; None where its files do not name them."""
    if plan.vocabulary is not None:
        return plan.vocabulary.tokenizer.ids
    vocabulary = read_vocabulary(plan.tokenizer.folder)
    return None if vocabulary is None else vocabulary.tokens


def beyond_rows(model: Checkpoint) -> tuple[dict[str, int], int]:
    """Return the tokens, by their ids, that a model's embedding has no rows for, and how many rows it has.

    Nothing where it has no tokenizer, or no table that is known to hold tokens. Raises `RequestError` for a
    broken tokenizer.
    """
    rows, vocabulary = token_rows(model.tensors), read_vocabulary(model.tokenizer.folder)
    if rows is None or vocabulary is None:
        return {}, rows or 0
    return vocabulary.beyond(rows), rows


def describe_beyond(tokens: Mapping[str, int], rows: int) -> str:
    """Return the text that names tokens without rows."""
    what = "1 token has an id" if len(tokens) == 1 else f"{len(tokens)} tokens have ids"
    shown = few([f"{token!r} ({place})" for token, place in tokens.items()])
    return f"{what} beyond the {rows} rows of the embedding: {shown}"


def _without_tokenizer(recipe: Recipe, source: TokenizerSource) -> tuple[list[str], list[Problem]]:
    """Return a warning or a problem where the source has no tokenizer of its own."""
    tokenizer, adapter = source.model.tokenizer, source.model.adapter
    if not tokenizer.complete:
        hint = "name 'base', or a model that has one"
        if source.named:
            return [], [Problem("there is no tokenizer here to take", source.label, hint)]
        if recipe.tokenizer_source == "base":
            return [f"{source.label}: there is no tokenizer here, so that the output has none"], []
    elif source.named and adapter is not None and tokenizer.folder != adapter.path:
        return [f"{source.label}: the adapter brings no tokenizer; that of its model is taken"], []
    return [], []


def _fallback(recipe: Recipe, reference: str, source: TokenizerSource) -> str:
    """Return what to do where tokens of the source have no rows: leave them out, or make the rows."""
    is_whole = source.model.adapter is None and token_rows(source.model.tensors) is not None
    owner = source.label if is_whole else "the base"
    make = f"give {owner} these rows first (transformers: resize_token_embeddings)"
    under, adapter = split_spec(reference, recipe.root)
    other = under if adapter is not None else "base" if recipe.base else reference
    if other == source.label:  # an adapter that names its base itself
        return make
    rule = " with rules: {vocabulary: by-position}" if recipe.rules.vocabulary == "refuse" else ""
    return f"tokenizer_source: {other}{rule} leaves them out; or {make}"


def _published(reference: Checkpoint, ours: Vocabulary | None, rows: int | None) -> Mapping[str, int]:
    """Return the tokens that the reference itself, without an adapter's tokenizer, has no rows for."""
    own = replace(reference, adapter=None).tokenizer.folder
    if ours is None or rows is None:
        return {}
    theirs = ours if own == ours.folder else read_vocabulary(own)
    return {} if theirs is None else theirs.beyond(rows)


def _compare(
    recipe: Recipe, inputs: Inputs, source: TokenizerSource, ours: Vocabulary | None
) -> tuple[list[str], list[str], list[Problem]]:
    """Return a line for each model but the source, and a warning or a problem for each that differs.

    Where layers are stacked, models that give layers alone have no say.
    """
    lines: list[str] = []
    unlike: list[tuple[str, str]] = []
    others: dict[int, Vocabulary | None] = {}
    stacked = with_tables(recipe)
    for position, model in inputs.involved.items():
        if stacked and same_model(inputs.specs[position]) not in stacked:
            continue
        if model.tokenizer.folder == source.model.tokenizer.folder:
            if position != inputs.reference:
                lines.append(f"{model.label}: the output's own tokenizer")
            continue
        others[position] = theirs = read_vocabulary(model.tokenizer.folder)
        text, accepted = _difference(source, model.label, ours, theirs)
        lines.append(f"{model.label}: {text}")
        if not accepted:
            unlike.append((model.label, text))
    if recipe.rules.vocabulary != "refuse":
        what = "the vocabularies differ, and rows are merged by position"
        return lines, [f"{label}: {what}: {text}" for label, text in unlike], []
    hint = _hint(inputs, source, ours, others) if unlike else ""
    return lines, [], [Problem(f"the vocabularies differ: {text}", label, hint) for label, text in unlike]


def with_tables(recipe: Recipe) -> set[str]:
    """Return the models of the slices that have what is before or behind the layers; none without slices."""
    slices = [piece for module in recipe.stack for piece in (module.slices[0], module.slices[-1])]
    models = [source.entry.model for piece in slices for source in piece.sources]
    return {same_model(spec) for spec in (*models, *(piece.base for piece in slices if piece.base))}


def _difference(
    source: TokenizerSource, label: str, ours: Vocabulary | None, theirs: Vocabulary | None
) -> tuple[str, bool]:
    """Return in what a vocabulary differs from the output's, and whether it is accepted."""
    if theirs is None:
        return "no tokenizer to compare", True
    if ours is None:
        return "not compared", True
    difference = compare_vocabularies(ours, theirs)
    accepted = difference.equal or (source.named and difference.within_a)
    return difference.describe(source.label, label), accepted


def _hint(
    inputs: Inputs,
    source: TokenizerSource,
    ours: Vocabulary | None,
    others: Mapping[int, Vocabulary | None],
) -> str:
    """Return what to do: name the model whose vocabulary holds all others', if there is one, or the rule."""
    by_position = "rules: {vocabulary: by-position} merges embedding rows by their position"
    rule = f"tokenizer_source: union merges the rows of each token; {by_position} and keeps {source.label}'s"
    for position, theirs in others.items():
        if theirs is None or not _holds_all(theirs, [ours, *others.values()]):
            continue
        spec, rows = inputs.specs[position], token_rows(inputs.reference_model.tensors)
        take = f"tokenizer_source: {spec} takes its tokenizer, which has all of these tokens"
        if rows is None or not theirs.beyond(rows):
            return take
        held = token_rows(inputs.models[position].tensors) or 0
        if not theirs.beyond(held):  # rows go by tokens then, and the base gets this model's
            return take
        wanted = max(held, theirs.size or 0)
        owner = "the base" if inputs.models[position].adapter else inputs.models[position].label
        resize = f"give {owner}'s embedding {wanted} rows (transformers: resize_token_embeddings)"
        return f"{resize}, and {take}; or {rule}"
    return rule


def _holds_all(vocabulary: Vocabulary, others: Iterable[Vocabulary | None]) -> bool:
    """Return whether a vocabulary has all tokens of the others, with the same ids."""
    return all(other is None or compare_vocabularies(vocabulary, other).within_a for other in others)
