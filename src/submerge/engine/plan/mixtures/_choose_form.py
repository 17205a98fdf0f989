"""Which architecture a mixture of experts gets."""

from __future__ import annotations

from collections.abc import Sequence

from submerge.engine.plan.mixtures._mixture_forms import DEEPSEEK, FORMS, QWEN, MixtureForm
from submerge.errors import Problem, RequestError, few
from submerge.recipe import MixtureRecipe
from submerge.store import Checkpoint

__all__ = ["choose_form"]


def choose_form(recipe: MixtureRecipe, models: Sequence[Checkpoint]) -> MixtureForm:
    """Return the first architecture that fits the models and the shared experts, of those that are asked for.

    mergekit's choice is DeepSeek MoE for a Llama with a shared expert that has no gate. transformers has no
    such class, and Qwen MoE computes the same with a gate that is constant. So that is taken where the recipe
    names no architecture.

    Raises `RequestError` with what stands in the way of each.
    """
    wanted = (recipe.architecture or "").lower()
    named = [form for form in FORMS if form.name.lower().startswith(wanted)]
    kinds = {model.label: str((model.config or {}).get("model_type")) for model in models}
    problems = _unlike_models(kinds)
    if not named:
        hint = f"there are {', '.join(form.name for form in FORMS)}"
        what = f"no architecture's name begins with {recipe.architecture!r}"
        problems.append(Problem(what, "architecture", hint))
    if problems:
        raise RequestError(problems)
    kind = next(iter(kinds.values()))
    fitting = [form for form in named if _misfit(form, recipe, kind) is None]
    if not fitting:
        raise RequestError(_none_fits(named, recipe, kind))
    if fitting[0] is DEEPSEEK and QWEN in fitting and not wanted:
        return QWEN
    return fitting[0]


def _unlike_models(kinds: dict[str, str]) -> list[Problem]:
    """Return a problem where models are of several architectures."""
    if len(set(kinds.values())) < 2:
        return []
    shown = few([f"{label}: {kind}" for label, kind in kinds.items()], 8)
    hint = "experts and base are models of one architecture"
    return [Problem(f"the models are of several architectures ({shown})", "experts", hint)]


def _misfit(form: MixtureForm, recipe: MixtureRecipe, kind: str) -> str | None:
    """Return why an architecture does not fit models of this `model_type` and the shared experts."""
    shared = len(recipe.shared_experts)
    if kind not in form.dense:
        return f"it is made of {' or '.join(form.dense)} models"
    if shared not in form.shared:
        return f"it has {' or '.join(map(str, form.shared))} shared experts"
    if shared and recipe.gates_shared and not form.gates_shared:
        return "it has no gate for a shared expert, and this one has prompts"
    return None


def _none_fits(forms: Sequence[MixtureForm], recipe: MixtureRecipe, kind: str) -> list[Problem]:
    """Return why none of some architectures fits; of those for other models only if there is nothing else."""
    near = [form for form in forms if kind in form.dense]
    if not near:
        known = ", ".join(sorted({dense for form in forms for dense in form.dense}))
        what = f"no mixture of experts is made of {kind} models"
        return [Problem(what, "base_model", f"give models of the types {known}")]
    return [
        Problem(
            f"{form.name} does not fit: {_misfit(form, recipe, kind)}", "shared_experts", _hint(form, recipe)
        )
        for form in near
    ]


def _hint(form: MixtureForm, recipe: MixtureRecipe) -> str:
    """Return what to do about the shared experts of a recipe."""
    shared = len(recipe.shared_experts)
    if not shared:
        return "list one model as 'shared_experts'"
    if not any(form.shared):
        return "leave 'shared_experts' out, or list that model among the experts"
    if shared in form.shared and recipe.gates_shared:
        return "leave out its prompts, or name another architecture"
    return "list another number of 'shared_experts'"
