"""From a recipe for a mixture of experts to its plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from submerge.arguments import checked
from submerge.device import check_device
from submerge.engine.plan._make_plan import link_problems
from submerge.engine.plan._mixture import MixturePlan
from submerge.engine.plan._plan import MergePlan
from submerge.engine.plan._warnings import input_warnings, rounding_warnings
from submerge.engine.plan.inputs import (
    Copies,
    Inputs,
    Settings,
    licence_warnings,
    open_models,
    resolve_copies,
)
from submerge.engine.plan.mixtures import (
    DEEPSEEK,
    PROJECTIONS,
    MixtureForm,
    MixtureWeights,
    Weight,
    choose_form,
    dense_name,
    mixture_config,
    source_problems,
    vocabulary_findings,
)
from submerge.engine.plan.tensors import (
    Input,
    TensorPlan,
    adapter_warnings,
    align_models,
    budget,
    weight_files,
)
from submerge.engine.plan.tokens import code_warnings, cut_warnings, plan_tokens
from submerge.errors import RequestError
from submerge.methods import MIXTURE
from submerge.recipe import MixtureRecipe, load_mixture, same_model
from submerge.store import Restacker, dtype_named

__all__ = ["plan_mixture"]


@checked
def plan_mixture(
    source: str | Path | Mapping[str, Any] | MixtureRecipe,
    settings: Settings | None = None,
    *,
    download: bool = False,
) -> MergePlan:
    """Return the plan of a mixture of experts, from the recipe, the files' headers, and a few values.

    Args:
        source: a path, YAML text (with a newline), a mapping, or a `MixtureRecipe`.
        settings: how it will be run.
        download: fetch the weights of models on the Hub, too; else only their small files and headers.

    Raises:
        RequestError: every problem of the recipe, or (if that is fine) of the files.

    Examples:
        >>> import submerge
        >>> experts = [{"source_model": "chat"}, {"source_model": "code"}]
        >>> plan = submerge.plan_moe({"base_model": "base", "gate_mode": "random", "experts": experts})
        >>> plan.mixture.form.architecture, plan.mixture.parameters, plan.mixture.active
        ('MixtralForCausalLM', 296000, 296000)
    """
    settings = settings or Settings()
    check_device(settings.device)
    recipe = source if isinstance(source, MixtureRecipe) else load_mixture(source)
    inputs = open_models(recipe, settings, download=download)
    form = choose_form(recipe, inputs.models)
    alignments, problems = align_models(inputs)
    if problems:
        raise RequestError(problems)
    inputs = inputs.of_models([alignment.model for alignment in alignments])
    base = replace(inputs, models=inputs.models[:1], specs=inputs.specs[:1], participants=(0,))
    copies = resolve_copies(recipe, base)
    inputs = inputs.of_models([*copies.inputs.models, *inputs.models[1:]])
    tokens, problems = plan_tokens(recipe, base)
    unlike, warnings = vocabulary_findings(inputs)
    problems += [*link_problems(recipe, inputs.reference_model), *unlike, *source_problems(form, inputs)]
    if problems:
        raise RequestError(problems)
    plan = _MixturePlanner(recipe, inputs, copies, MixtureWeights(recipe, form, inputs)).plan(settings)
    of_tokens = (*tokens.warnings, *code_warnings(tokens.tokenizer, inputs)) if tokens else ()
    notes = (note for alignment in alignments for note in alignment.notes)
    more = (*warnings, *cut_warnings(recipe, inputs), *of_tokens, *notes, *licence_warnings(plan.licences))
    own = (*recipe.warnings, *plan.warnings, *_warnings(recipe, form), *more)
    return replace(plan, tokens=tokens, warnings=own)


def _warnings(recipe: MixtureRecipe, form: MixtureForm) -> Iterator[str]:
    """Yield what is legal, and yet worth a look."""
    kinds = {(same_model(e.model), e.noise_scale, e.residual_scale) for e in recipe.experts}
    if len(kinds) == 1 and not recipe.experts[0].noise_scale:
        yield "all experts are the same: until it is trained the mixture answers as a model with one of them"
    if form is DEEPSEEK:
        what = "transformers loads a DeepSeek MoE with code from the Hub alone (trust_remote_code)"
        yield f"{what}; with one shared expert 'architecture: qwen' has a class of its own for the same"


@dataclass
class _MixturePlanner:
    """Plans the tensors of a mixture; `inputs` are the models under the base's names, the base first."""

    recipe: MixtureRecipe
    inputs: Inputs
    copies: Copies
    weights: MixtureWeights

    def plan(self, settings: Settings) -> MergePlan:
        """Return the plan, without its tokenizer."""
        inputs = self._renamed()
        tensors = tuple(self._tensor(weight, inputs) for weight in self.weights.all)
        used = {(weight.model, weight.source) for weight in self.weights.all}
        return MergePlan(
            recipe=self.recipe,
            settings=settings,
            inputs=inputs,
            tensors=tensors,
            shards=weight_files(self.weights.base, tensors, settings),
            unused=self.inputs.unused(used, range(len(self.inputs.models))),
            warnings=(
                *input_warnings(self.inputs, {}, tensors),
                *rounding_warnings(inputs, tensors, self.recipe.dtype),
                *adapter_warnings(self.inputs.models, of_one_base=False),
                *self.copies.warnings,
            ),
            budget=budget(
                tensors,
                inputs.models,
                settings.workers,
                settings.max_memory,
                data_passes=self._held(),
            ),
            unties=self.copies.unties,
            mixture=self._mixture(tensors),
        )

    def _renamed(self) -> Inputs:
        """Return the models under the output's names, and behind them that of the gates."""
        restacker = Restacker()
        names: list[dict[str, str]] = [{} for _ in self.inputs.models]
        for weight in self.weights.all:
            if weight.model != self.weights.gates:
                names[weight.model][weight.name] = weight.source
        models = [restacker.model(model, own) for model, own in zip(self.inputs.models, names, strict=True)]
        gates = self.weights.gate_model
        inputs = self.inputs.of_models([*models, gates])
        return replace(inputs, specs=(*self.inputs.specs, gates.label))

    def _tensor(self, weight: Weight, inputs: Inputs) -> TensorPlan:
        """Return the plan of one tensor; its type is that of the base's tensor in its place."""
        base, model = self.weights.base, inputs.models[weight.model]
        entry = model.tensors[weight.name]
        of_base = base.tensors.get(weight.source, base.tensors[dense_name(0, "gate_proj")])
        member = Input(weight.model, entry, patch=model.part(weight.name) is not None)
        is_base = weight.expert is None and weight.model == 0
        return TensorPlan(
            name=weight.name,
            shape=entry.shape,
            dtype=dtype_named(self.recipe.dtype or "") or of_base.dtype,
            action="take_base" if is_base else "merge",
            inputs=(member,),
            method=None if is_base else MIXTURE,
            values={} if is_base else {"noise_scale": 0.0, "residual_scale": 1.0, **weight.values},
            why=self._why(weight),
            parameter=self.copies.copy_of.get(weight.name, weight.name),
        )

    def _why(self, weight: Weight) -> str:
        """Return where a tensor comes from."""
        if weight.model == self.weights.gates:
            gates = {name for names in self.weights.gate_names for name in names}
            return "a gate" if weight.name in gates else "zeros"
        return f"of {self.inputs.models[weight.model].label}"

    def _held(self) -> int:
        """Return the bytes that the base takes, if prompts run through it before the work."""
        if not self.recipe.reads_prompts or self.recipe.gate_mode == "cheap_embed":
            return 0
        return sum(entry.nbytes for entry in self.weights.base.tensors.values())

    def _mixture(self, tensors: Sequence[TensorPlan]) -> MixturePlan:
        recipe, form, base = self.recipe, self.weights.form, self.weights.base
        inner, width = base.tensors[dense_name(0, "gate_proj")].shape
        expert = len(PROJECTIONS) * inner * width * len(self.weights.layers)
        parameters = sum(tensor.numel for tensor in tensors)
        count = recipe.experts_per_token
        own = form.config(len(recipe.experts), count, len(recipe.shared_experts), inner)
        assert base.config is not None  # its type chose the architecture
        query = base.tensors[f"{self.weights.layers[0]}.self_attn.q_proj.weight"].shape[0]
        head = query // int(base.config["num_attention_heads"])
        return MixturePlan(
            form=form,
            recipe=recipe,
            base=base,
            config=mixture_config(base.config, form.architecture, own, head),
            gates=self.weights.gates,
            gate_names=self.weights.gate_names,
            parameters=parameters,
            active=parameters - expert * (len(recipe.experts) - count),
            expert_of={w.name: w.expert for w in self.weights.all if w.expert is not None},
        )
