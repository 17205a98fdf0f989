"""A full fine-tune as an adapter."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from submerge.arguments import checked
from submerge.engine._merge import merge
from submerge.engine.output import MergeReport, Progress
from submerge.engine.plan import Settings
from submerge.errors import Problem, RequestError
from submerge.recipe import same_model

__all__ = ["extract_lora"]


@checked
def extract_lora(
    model: str | Path,
    out: str | Path,
    *,
    base: str | Path,
    rank: int | None = None,
    energy: float | None = None,
    dtype: str | None = None,
    settings: Settings | None = None,
    overwrite: bool = False,
    progress: Callable[[Progress], None] = lambda _: None,
) -> MergeReport:
    """Write the LoRA adapter that turns `base` into `model` as nearly as its rank allows.

    Each linear map's difference is cut to its leading singular triplets, the best that there is in the
    Frobenius norm. Embeddings, norms and biases have no place in the adapter; the report's warnings say
    which of them differ, or have another shape. `figures` of the report holds, for each weight, `rank` and
    `error`, the relative error ‖Δ − B A‖ / ‖Δ‖ of what was written.

    Args:
        model: the fine-tune: a folder, a file or a Hub id.
        base: what it was tuned from, of the same architecture.
        out: the folder to make.
        rank: the rank of the adapter, or with `energy` the most that it may have.
        energy: in (0, 1]; the smallest rank that keeps this share of each ‖Δ‖².
        dtype: of the factors; float32 by default.
        settings: how to run.
        overwrite: replace a folder that is not empty.
        progress: called about ten times a second.

    Raises:
        RequestError: the request or the inputs are not right; nothing was written.
        WorkError: the disk or the values failed; `out` is as it was before.

    Examples:
        >>> import submerge
        >>> report = submerge.extract_lora("chat", "chat-lora", base="base", rank=16)
        >>> report.figures["model.layers.0.mlp.up_proj.weight"]["rank"]
        16
    """
    model, base = str(model), str(base)
    if rank is None and energy is None:
        raise RequestError(
            Problem(
                "neither a rank nor an energy is given",
                "",
                "give a rank, such as 16, or an energy, such as 0.9",
            )
        )
    if same_model(model) == same_model(base):
        raise RequestError(Problem("is the base itself: nothing was tuned", model, "name the fine-tune"))
    output = {"as": "adapter", "rank": rank, "energy": energy}
    recipe: dict[str, Any] = {
        "merge_method": "cat",
        "base_model": base,
        "models": [{"model": model}],
        "output": {key: value for key, value in output.items() if value is not None},
    }
    if dtype is not None:
        recipe["dtype"] = dtype
    try:
        return merge(recipe, out, settings=settings, overwrite=overwrite, progress=progress)
    except RequestError as error:
        raise RequestError([_followable(problem, recipe) for problem in error.problems]) from None


def _followable(problem: Problem, recipe: dict[str, Any]) -> Problem:
    """Return the problem with a hint that needs no recipe, or with the recipe that it needs."""
    where = {"output.rank": "--rank", "output.energy": "--energy", "dtype": "--dtype"}.get(problem.where)
    problem = replace(problem, where=where or problem.where)
    rules = re.search(r"rules: {(\w+): ([\w-]+)}", problem.hint)
    if rules is None:
        return problem
    with_rule = recipe | {"rules": {rules[1]: rules[2]}}
    text = yaml.safe_dump(with_rule, default_flow_style=True, width=2**20)
    hint = f"extract from a fine-tune of this base; or `submerge merge` the recipe {text.strip()}"
    return replace(problem, hint=hint)
