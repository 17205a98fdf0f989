"""A mixture of experts from a recipe to a folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from submerge.arguments import checked
from submerge.engine._gates import with_gates
from submerge.engine._merge import merge
from submerge.engine.output import MergeReport, Progress, check_target
from submerge.engine.plan import MergePlan, Settings, plan_mixture
from submerge.recipe import MixtureRecipe

if TYPE_CHECKING:
    from submerge.calibrate import Step

__all__ = ["moe"]


@checked
def moe(
    recipe: str | Path | Mapping[str, Any] | MixtureRecipe | MergePlan,
    out: str | Path,
    *,
    settings: Settings | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Callable[[Progress], None] = lambda _: None,
    prompt_progress: Callable[[Step], None] | None = None,
) -> MergeReport:
    """Make a mixture of experts by `recipe` in the folder `out`, an ordinary Hugging Face folder.

    The feed-forward blocks of the recipe's models become experts, and a gate chooses among them for each
    token. All else is the base's. No weights are merged, and no model is held, but for the base where
    prompts run through it (`gate_mode: hidden`).

    Args:
        recipe: a path, YAML text (with a newline), a mapping, a `MixtureRecipe`, or the plan of a mixture.
        out: the folder to make. It is built as `OUT.incomplete` and renamed when it is complete.
        settings: how to run (ignored for a plan, which has its own).
        resume: go on from what an interrupted run of the same recipe left.
        overwrite: replace a folder that is not empty.
        progress: called about ten times a second.
        prompt_progress: called after each prompt that runs through the base.

    Raises:
        RequestError: the recipe, the inputs or `out` are not right; nothing was written.
        WorkError: the disk, a file or the values failed; `out` is as it was before.

    Examples:
        >>> import submerge
        >>> experts = [{"source_model": "chat"}, {"source_model": "code"}]
        >>> recipe = {"base_model": "base", "gate_mode": "random", "experts": experts}
        >>> report = submerge.moe(recipe, "mixture")
        >>> report.out.name, report.tensors
        ('mixture', {'base': 27, 'mixture': 28})
    """
    plan = recipe if isinstance(recipe, MergePlan) else plan_mixture(recipe, settings)
    if plan.pending:  # everything was checked by the headers: now the weights are worth their download
        assert isinstance(plan.recipe, MixtureRecipe)
        plan = plan_mixture(plan.recipe, plan.settings, download=True)
    check_target(plan, Path(out), overwrite)
    plan = with_gates(plan, prompt_progress)
    return merge(plan, out, resume=resume, overwrite=overwrite, progress=progress)
