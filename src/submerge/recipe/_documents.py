"""Several recipes in one file, of which one can merge the results of others, by their names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path, PurePosixPath
from typing import Any

from submerge.errors import Problem, RequestError, did_you_mean, few
from submerge.methods import Method
from submerge.recipe._load import read_recipe
from submerge.recipe._load_mixture import describes_mixture, read_mixture
from submerge.recipe._mixture import MixtureRecipe
from submerge.recipe._problems import show
from submerge.recipe._recipe import Recipe
from submerge.recipe._source import RecipeSource, open_documents

__all__ = ["Documents", "document_hint", "load_documents"]

MODEL_KEYS = frozenset({"model", "base_model", "source_model", "tokenizer_source", "source", "path", "lora"})
"""The keys of mergekit whose values can name a model, wherever they stand."""
_HINT = "give every document but the last a 'name: …' of its own"


@dataclass(frozen=True)
class Documents:
    """The recipes of one file, as mergekit-multi reads them, and those for mixtures of experts among them.

    Attributes:
        recipes: in an order in which each comes after those whose results it merges.
        uses: for the name of each document, those of the documents whose results it merges.
        result: the document without a name, whose result is wanted, or the only one of the file; None where
            all of several have names, so that all results are wanted.
        unused: the names of documents that the result does not need.

    Examples:
        >>> from submerge.recipe import load_documents
        >>> first = "name: both\\nmerge_method: linear\\nmodels: [chat, code]\\nparameters: {weight: 1}"
        >>> second = "merge_method: slerp\\nbase_model: base\\nmodels: [base, both]\\nparameters: {t: 0.5}"
        >>> documents = load_documents(f"{second}\\n---\\n{first}\\n")
        >>> [recipe.name for recipe in documents.recipes], documents.uses[""]
        (['both', ''], ('both',))
    """

    recipes: tuple[Recipe, ...]
    uses: Mapping[str, tuple[str, ...]]
    result: Recipe | None
    unused: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """A line for each document that the result does not need."""
        return tuple(f"no document merges the result of '{name}'" for name in self.unused)

    @property
    def needed(self) -> tuple[Recipe, ...]:
        """The recipes that the wanted results need, in their order."""
        return tuple(recipe for recipe in self.recipes if recipe.name not in self.unused)

    def one(self, name: str | None = None) -> Recipe:
        """Return the recipe of this name, whose models must all be there; without a name that of the result.

        Where all have names, that is the last one. Raises `RequestError` where there is none of the name, or
        it merges results of others.
        """
        by_name = {recipe.name: recipe for recipe in self.recipes}
        recipe = by_name.get(name) if name else self.result or self.recipes[-1]
        if recipe is None:
            hint = document_hint(name or "", [other for other in by_name if other])
            raise RequestError(Problem(f"no document is called {show(name)}", "--document", hint))
        if isinstance(recipe, MixtureRecipe):
            what = "it makes a mixture of experts, and merges nothing"
            raise RequestError(Problem(what, recipe.name or "the result's document", "choose a --document"))
        if uses := self.uses[recipe.name]:
            what = f"it merges results of other documents, which are not there: {few(uses)}"
            hint = (
                "merge all with --keep-parts, and name OUT.parts/NAME in their place; or choose a --document"
            )
            raise RequestError(Problem(what, recipe.name or "the result's document", hint))
        return recipe


def document_hint(name: str, documents: Sequence[str]) -> str:
    """Return which of the documents may be meant by a name that none of them has, and what all are called."""
    if not documents:
        return "there is none with a name"
    called = f"documents are called {few([show(document) for document in documents], 8)}"
    return f"{did_you_mean(name, documents, '')} {called}".lstrip()


def load_documents(
    source: str | Path | Mapping[str, Any],
    *,
    methods: Mapping[str, Method] | None = None,
    output: Mapping[str, Any] | None = None,
    mergekit: bool = False,
) -> Documents:
    """Return the recipes of all documents in `source`: a file's path, YAML text, or a mapping for one.

    Documents are separated by `---`. A document's `name` stands for its result wherever another document
    names a model. At most one document has none.

    Args:
        source, methods, mergekit: as for `load_recipe`.
        output: takes precedence over the section `output` of the result's document.

    Raises:
        RequestError: holds every problem of every document; and names that two have, or that no folder can
            have, and documents that need each other in a circle.
    """
    sources = open_documents(source, lenient=mergekit)
    problems: list[Problem] = _name_problems(sources) if len(sources) > 1 else []
    recipes: list[Recipe] = []
    for opened in sources:
        is_result = len(sources) == 1 or not _name(opened)
        try:
            if len(sources) > 1 and describes_mixture(opened.data):
                recipes.append(read_mixture(opened, named=True))
                if is_result and output:
                    problems.append(_no_adapter(opened))
            else:
                recipes.append(read_recipe(opened, methods, output if is_result else None))
        except RequestError as error:
            problems += error.problems
    if problems:
        raise RequestError(problems)
    if len(recipes) == 1:
        return Documents((recipes[0],), {recipes[0].name: ()}, recipes[0])
    return _ordered(recipes, {recipe.name: opened for recipe, opened in zip(recipes, sources, strict=True)})


def _ordered(recipes: Sequence[Recipe], sources: Mapping[str, RecipeSource]) -> Documents:
    """Return recipes of several documents in the order of their needs."""
    uses = {name: _used(source.data, sources.keys() - {""}) for name, source in sources.items()}
    try:
        order = sorted(TopologicalSorter(uses).static_order(), key=lambda name: not name)  # the result last
    except CycleError as error:
        names = error.args[1]
        circle = " → ".join(name or "the result" for name in reversed(names))
        where = sources[names[0]].report.where(("name",))
        hint = "a document can merge the results of others, and none of its own"
        raise RequestError(Problem(f"these documents need each other: {circle}", where, hint)) from None
    by_name = {
        recipe.name: replace(recipe, documents=tuple(n for n in sources if n not in ("", recipe.name)))
        for recipe in recipes
    }
    result = by_name.get("")
    needed = {""} if result else set(uses)
    for name in reversed(order):
        needed.update(uses[name] if name in needed else ())
    unused = tuple(name for name in by_name if name not in needed)
    return Documents(tuple(by_name[name] for name in order), uses, result, unused)


def _no_adapter(opened: RecipeSource) -> Problem:
    """Return the problem that the form of an output is asked for, and that is a mixture of experts."""
    hint = "leave --as, --rank and --energy out"
    return Problem("a mixture of experts is no adapter", opened.report.where(("experts",)), hint)


def _used(data: Any, names: Collection[str]) -> tuple[str, ...]:
    """Return the names that a document's data has in the place of models, in its order."""
    parts = [part for text in _model_texts(data) for part in text.split("+")]
    return tuple(dict.fromkeys(part for part in parts if part in names))


def _model_texts(data: Any, key: str = "") -> Iterator[str]:
    """Yield all texts of a document that can name a model."""
    if isinstance(data, str) and (key in MODEL_KEYS or key == "models"):
        yield data
    elif isinstance(data, Mapping):
        for name, value in data.items():
            yield from _model_texts(value, name)
    elif isinstance(data, list):
        for value in data:
            yield from _model_texts(value, key)


def _name(source: RecipeSource) -> str:
    """Return the name of a document, or an empty text where it has none that is text."""
    name = source.data.get("name") if isinstance(source.data, dict) else None
    return name if isinstance(name, str) else ""


def _name_problems(sources: Sequence[RecipeSource]) -> list[Problem]:
    """Return what is wrong with the names of several documents."""
    problems = []
    counts: Counter[str] = Counter()
    names = [_name(source) for source in sources]
    for source in sources:
        name, where = _name(source), source.report.where(("name",))
        counts[name] += 1
        if counts[name] > 1:
            what = f"a second document is called {show(name)}" if name else "a second document has no name"
            problems.append(Problem(what, where, _HINT))
        elif name and not _can_be_folder(name, names):
            hint = "take a word, or words with / between them"
            problems.append(Problem(f"no result can be called {show(name)}", where, hint))
    return problems


def _can_be_folder(name: str, names: Sequence[str]) -> bool:
    """Return whether a result can lie in a folder of this name, without another one in it, and be named."""
    parts = PurePosixPath(name).parts
    plain = not any(part.startswith(".") or part == "/" for part in parts)
    holds = any(other.startswith(f"{name}/") for other in names)
    return plain and not holds and "/".join(parts) == name and not set("+@\0\\") & set(name)
