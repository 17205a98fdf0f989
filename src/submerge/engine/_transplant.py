"""A donor's tokenizer for a model, without training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from submerge.arguments import checked
from submerge.engine._merge import merge
from submerge.engine.output import MergeReport, Progress, check_target
from submerge.engine.plan import MergePlan, Settings, make_plan
from submerge.errors import Problem, RequestError

__all__ = ["TransplantReport", "plan_transplant", "transplant"]


@dataclass(frozen=True)
class TransplantReport:
    """The result of `transplant`: whose rows the donor's tokens have, and how near the others come.

    Attributes:
        merge: where the result is, and what it cost.
        tokens: how many of the donor's tokens are `shared`, and how many rows each method gave.
        unused: tokens of the model that the donor does not have.
        residuals: for each table with rows by `omp`, the mean of ‖e − Σ_j c_j e_j‖ / ‖e‖ of the donor's.

    Examples:
        >>> from tokenizers import Tokenizer, models
        >>> import submerge
        >>> for folder, words in {"chat": ["the", "cat"], "code": ["a", "the"]}.items():
        ...     words = {word: id_ for id_, word in enumerate(words)}
        ...     Tokenizer(models.WordLevel(words, "the")).save(f"{folder}/tokenizer.json")
        >>> report = submerge.transplant("chat", "code", "other", method="omp", k=8)
        >>> report.tokens, report.unused, sorted(report.residuals)
        ({'shared': 1, 'omp': 1}, 1, ['lm_head.weight', 'model.embed_tokens.weight'])
    """

    merge: MergeReport
    tokens: Mapping[str, int]
    unused: int
    residuals: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data for JSON."""
        own = {"tokens": dict(self.tokens), "unused": self.unused, "residuals": dict(self.residuals)}
        return {**self.merge.to_dict(), **own}


@checked
def transplant(
    model: str | Path,
    donor: str | Path,
    out: str | Path,
    *,
    method: str = "omp",
    k: int | None = None,
    pad_to_multiple_of: int | None = None,
    chat_template: str | None = None,
    settings: Settings | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Callable[[Progress], None] = lambda _: None,
) -> TransplantReport:
    """Write `model` with the tokenizer of `donor` to the folder `out`; return the report.

    Tokens that both have keep the model's rows, by the text that they stand for. The rows of all others are
    approximated, in the input embeddings and in the output head, each by the donor's own. All else of the
    model stays as it is.

    Args:
        model: a folder or a Hub id of a language model with its tokenizer.
        donor: the same of a model of any size; for methods other than `omp` its tokenizer is enough.
        out: the folder to make.
        method: `omp`, `subword`, `mean` or `zero`, for the rows of tokens that the model lacks.
        k: shared tokens in a combination of `omp`, 64 by default; other methods take none.
        pad_to_multiple_of: the tables have a number of rows that is a multiple of this.
        chat_template: the donor's by default; `auto` for the model's, the name of a template, or its text.
        settings: how to run.
        resume: go on from what an interrupted run left.
        overwrite: replace a folder that is not empty.
        progress: called about ten times a second while weights are written.

    Raises:
        RequestError: the request or the inputs are not right; nothing was written.
        WorkError: the disk or the values failed; `out` is as it was before.

    Goddard and Fernandes Neto, "Training-Free Tokenizer Transplantation via Orthogonal Matching Pursuit",
    arXiv 2506.06607.

    Examples:
        >>> from tokenizers import Tokenizer, models
        >>> import submerge
        >>> for folder, words in {"chat": ["the", "cat"], "code": ["a", "the"]}.items():
        ...     words = {word: id_ for id_, word in enumerate(words)}
        ...     Tokenizer(models.WordLevel(words, "the")).save(f"{folder}/tokenizer.json")
        >>> report = submerge.transplant("chat", "code", "other", method="mean")
        >>> submerge.verify("other").problems
        []
    """
    asked: dict[str, Any] = {
        "method": method,
        "k": k,
        "pad_to_multiple_of": pad_to_multiple_of,
        "chat_template": chat_template,
        "settings": settings,
    }
    plan = plan_transplant(str(model), str(donor), **asked)
    check_target(plan, Path(out), overwrite)
    if plan.pending:  # here, for the report is made from the plan that was run
        plan = plan_transplant(str(model), str(donor), **asked, download=True)
    report = merge(plan, out, resume=resume, overwrite=overwrite, progress=progress)
    donor_rows = plan.donor_rows
    assert donor_rows is not None  # the recipe asks for them
    own = donor_rows.models[plan.inputs.reference]
    return TransplantReport(report, own.counts, own.unused, donor_rows.residuals())


def plan_transplant(
    model: str,
    donor: str,
    *,
    method: str = "omp",
    k: int | None = None,
    pad_to_multiple_of: int | None = None,
    chat_template: str | None = None,
    settings: Settings | None = None,
    download: bool = False,
) -> MergePlan:
    """Return the plan of a transplant, from files' headers and the tokenizers alone.

    The arguments are those of `transplant`. Raises `RequestError` with all that is wrong.
    """
    new_tokens: dict[str, Any] = {"method": method}
    if k is not None:
        new_tokens["k"] = k
    tokenizer = {"source": donor, "new_tokens": new_tokens, "pad_to_multiple_of": pad_to_multiple_of}
    recipe: dict[str, Any] = {
        "merge_method": "passthrough",
        "models": [{"model": model}],
        "tokenizer": {key: value for key, value in tokenizer.items() if value is not None},
    }
    if chat_template is not None:
        recipe["chat_template"] = chat_template
    try:
        return make_plan(recipe, settings, download=download)
    except RequestError as error:
        raise RequestError([_of_flag(problem) for problem in error.problems]) from None


_FLAGS = {
    "tokenizer.new_tokens.method": "--method",
    "tokenizer.new_tokens.k": "-k",
    "tokenizer.pad_to_multiple_of": "--pad-to-multiple-of",
    "chat_template": "--chat-template",
    "tokenizer.source": "the donor",
    "models[0].model": "the model",
}
"""What the keys of the recipe are on the command line."""


def _of_flag(problem: Problem) -> Problem:
    return replace(problem, where=_FLAGS.get(problem.where, problem.where))
