"""From a recipe for a mixture of experts to its plan: each tensor of the output is one of one model's.

Attention, norms and embeddings are the base's. The feed-forward block of each model is an expert, under a
name of its own (`store.Restacker`). What no file has, such as the weights of gates, is in one more model:
random numbers and zeros are computed when they are read; what prompts decide on gets its values before the
work.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod, sqrt
from pathlib import Path
from typing import Any

from submerge.algebra import stream_key
from submerge.engine.plan._adapter_form import adapter_warnings
from submerge.engine.plan._choose_form import choose_form
from submerge.engine.plan._copies import Copies, resolve_copies
from submerge.engine.plan._device import check_device
from submerge.engine.plan._inputs import Inputs
from submerge.engine.plan._make_plan import link_problems
from submerge.engine.plan._memory import budget
from submerge.engine.plan._mixture import MixturePlan
from submerge.engine.plan._mixture_config import mixture_config
from submerge.engine.plan._mixture_forms import DEEPSEEK, PROJECTIONS, MixtureForm
from submerge.engine.plan._mixture_sources import (
    LAYERS,
    count_layers,
    dense_name,
    is_feed_forward,
    source_problems,
    vocabulary_findings,
)
from submerge.engine.plan._models import open_models
from submerge.engine.plan._naming import align_models
from submerge.engine.plan._plan import MergePlan
from submerge.engine.plan._random_rows import RandomRows
from submerge.engine.plan._settings import Settings
from submerge.engine.plan._tensor import Input, TensorPlan
from submerge.engine.plan._tokens import plan_tokens
from submerge.engine.plan._warnings import input_warnings
from submerge.engine.plan._weight_files import weight_files
from submerge.errors import RequestError
from submerge.methods import MIXTURE
from submerge.names import is_buffer
from submerge.recipe import Expert, MixtureRecipe, load_mixture, same_model
from submerge.store import (
    Checkpoint,
    ComputedRows,
    Restacker,
    RowSource,
    TensorEntry,
    dtype_named,
)

__all__ = ["plan_mixture"]

GATES = "gates"
"""What the model is called that has what no file has."""
FLOAT = "F32"
"""Its type."""
HALF = 0.5
"""What a gate without weights gives: σ(0)."""


def plan_mixture(
    source: str | Path | Mapping[str, Any] | MixtureRecipe,
    settings: Settings | None = None,
    *,
    download: bool = False,
) -> MergePlan:
    """Return the plan of a mixture of experts, from the recipe and the files' headers alone.

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
    plan = _MixturePlanner(recipe, form, inputs, copies).plan(settings)
    tokenizer_warnings = tokens.warnings if tokens else ()
    own = (*recipe.warnings, *plan.warnings, *_warnings(recipe, form), *warnings, *tokenizer_warnings)
    return replace(plan, tokens=tokens, warnings=own)


def _warnings(recipe: MixtureRecipe, form: MixtureForm) -> Iterator[str]:
    """Yield what is legal, and yet worth a look."""
    kinds = {(same_model(e.model), e.noise_scale, e.residual_scale) for e in recipe.experts}
    if len(kinds) == 1 and not recipe.experts[0].noise_scale:
        yield "all experts are the same: until it is trained the mixture answers as a model with one of them"
    if form is DEEPSEEK:
        what = "transformers loads a DeepSeek MoE with code from the Hub alone (trust_remote_code)"
        yield f"{what}; with one shared expert 'architecture: qwen' has a class of its own for the same"


@dataclass(frozen=True)
class _Weight:
    """A tensor of the output: its name, and whose tensor of what name it is, with what becomes of it."""

    name: str
    model: int
    source: str
    expert: Expert | None = None
    values: Mapping[str, float] = field(default_factory=dict)


@dataclass
class _MixturePlanner:
    """Plans the tensors of a mixture; `inputs` are the models under the base's names, the base first."""

    recipe: MixtureRecipe
    form: MixtureForm
    inputs: Inputs
    copies: Copies
    computed: dict[str, RowSource] = field(default_factory=dict)
    entries: dict[str, TensorEntry] = field(default_factory=dict)

    @property
    def base(self) -> Checkpoint:
        return self.inputs.reference_model

    @cached_property
    def layers(self) -> list[str]:
        """The prefixes of the layers."""
        return [f"{LAYERS}.{layer}" for layer in range(count_layers(self.base))]

    @cached_property
    def width(self) -> int:
        """The size of the residual stream."""
        return self.base.tensors[dense_name(0, "gate_proj")].shape[1]

    @property
    def gates(self) -> int:
        """The position of the model that has what no file has."""
        return len(self.inputs.models)

    @property
    def shared_gate(self) -> str:
        """What weighs the shared expert: `none`, `constant`, or the `weights` of a gate."""
        if not (self.recipe.shared_experts and self.form.gates_shared):
            return "none"
        kind = (self.base.config or {}).get("model_type")
        for_deepseek = self.recipe.architecture is None and kind in DEEPSEEK.dense
        is_drawn = not self.recipe.reads_prompts and not for_deepseek
        return "weights" if self.recipe.gates_shared or is_drawn else "constant"

    def plan(self, settings: Settings) -> MergePlan:
        """Return the plan, without its tokenizer."""
        weights = [*self._of_base(), *self._of_experts(), *self._of_shared(), *self._of_gates()]
        inputs = self._renamed(weights)
        tensors = tuple(self._tensor(weight, inputs) for weight in weights)
        gates = inputs.models[self.gates]
        return MergePlan(
            recipe=self.recipe,
            settings=settings,
            inputs=inputs,
            tensors=tensors,
            shards=weight_files(self.base, tensors, settings),
            unused=self._unused(weights),
            warnings=(
                *input_warnings(self.inputs, {}, tensors),
                *adapter_warnings(self.inputs.models, of_one_base=False),
                *self.copies.warnings,
            ),
            budget=budget(tensors, settings.workers, settings.max_memory, self._held()),
            unties=self.copies.unties,
            mixture=self._mixture(weights, gates),
        )

    def _of_base(self) -> Iterator[_Weight]:
        """Yield all tensors of the base but those of its feed-forward blocks."""
        for name in self.base.tensors:
            if not is_feed_forward(name) and not is_buffer(name):
                yield _Weight(name, 0, name)
        for layer in self.layers if self.form.needs_biases else ():
            for side in "qkv":
                name = f"{layer}.self_attn.{side}_proj.bias"
                if name not in self.base.tensors:
                    rows = self.base.tensors[f"{layer}.self_attn.{side}_proj.weight"].shape[0]
                    yield self._new(name, (rows,), ComputedRows((), FLOAT))

    def _of_experts(self) -> Iterator[_Weight]:
        for layer, prefix in enumerate(self.layers):
            for number, expert in enumerate(self.recipe.experts):
                for projection in PROJECTIONS:
                    name = self.form.expert(prefix, number, projection)
                    yield self._of_expert(expert, name, layer, projection)

    def _of_shared(self) -> Iterator[_Weight]:
        """Yield the blocks of the shared expert; what a gate of zeros halves is doubled."""
        scale = 1 / HALF if self.shared_gate == "constant" else 1.0
        for layer, prefix in enumerate(self.layers):
            for expert in self.recipe.shared_experts:
                for projection in PROJECTIONS:
                    name = self.form.shared_expert(prefix, projection)
                    yield self._of_expert(expert, name, layer, projection, scale)

    def _of_expert(
        self, expert: Expert, name: str, layer: int, projection: str, scale: float = 1.0
    ) -> _Weight:
        position = [same_model(spec) for spec in self.inputs.specs].index(same_model(expert.model))
        scale *= expert.residual_scale
        values = {
            "noise_scale": expert.noise_scale,
            "residual_scale": scale if projection == "down_proj" else 1.0,
        }
        return _Weight(name, position, dense_name(layer, projection), expert, values)

    def _of_gates(self) -> Iterator[_Weight]:
        for layer in self.layers:
            gate = self.form.gate(layer)
            yield self._new(gate, (len(self.recipe.experts), self.width), self._drawn(gate))
            if self.shared_gate != "none":
                shared = self.form.shared_gate(layer)
                rows = self._drawn(shared) if self.shared_gate == "weights" else ComputedRows((), FLOAT)
                yield self._new(shared, (1, self.width), rows)

    def _drawn(self, name: str) -> RowSource | None:
        """Return weights of a gate that are drawn at random; None for those that prompts decide on."""
        if self.recipe.reads_prompts:
            return None
        bound = sqrt(1 / self.width) if self.recipe.gate_mode == "uniform_random" else None
        return RandomRows(stream_key(self.recipe.seed, name, 0), bound)

    def _new(self, name: str, shape: tuple[int, ...], rows: RowSource | None) -> _Weight:
        """Return a tensor that no file has, after noting it for the model that has it."""
        self.entries[name] = TensorEntry(name, FLOAT, shape, None, 0, 4 * prod(shape))
        if rows is not None:
            self.computed[name] = rows
        return _Weight(name, self.gates, name)

    def _renamed(self, weights: list[_Weight]) -> Inputs:
        """Return the models under the output's names, and behind them that of the gates."""
        restacker = Restacker()
        names: list[dict[str, str]] = [{} for _ in self.inputs.models]
        for weight in weights:
            if weight.model != self.gates:
                names[weight.model][weight.name] = weight.source
        models = [restacker.model(model, own) for model, own in zip(self.inputs.models, names, strict=True)]
        gates = Checkpoint(GATES, self.base.path, None, self.entries, {}, computed=self.computed)
        inputs = self.inputs.of_models([*models, gates])
        return replace(inputs, specs=(*self.inputs.specs, GATES))

    def _tensor(self, weight: _Weight, inputs: Inputs) -> TensorPlan:
        """Return the plan of one tensor; its type is that of the base's tensor in its place."""
        model = inputs.models[weight.model]
        entry = model.tensors[weight.name]
        of_base = self.base.tensors.get(weight.source, self.base.tensors[dense_name(0, "gate_proj")])
        member = Input(weight.model, entry, patch=bool(model.adapter and weight.name in model.adapter.parts))
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

    def _why(self, weight: _Weight) -> str:
        """Return where a tensor comes from."""
        if weight.model == self.gates:
            return "a gate" if weight.name in self._gate_names else "zeros"
        if weight.expert is None:
            return f"of {self.base.label}"
        return f"of {self.inputs.models[weight.model].label}"

    @cached_property
    def _gate_names(self) -> list[str]:
        """The tensors of gates that prompts or chance decide on."""
        shared = self.shared_gate == "weights"
        return [
            name
            for layer in self.layers
            for name in (self.form.gate(layer), *((self.form.shared_gate(layer),) if shared else ()))
        ]

    def _unused(self, weights: list[_Weight]) -> dict[int, tuple[str, ...]]:
        """Return, for each model, its tensors that no output reads."""
        used = {(weight.model, weight.source) for weight in weights}
        unused = {
            position: tuple(name for name in model.tensors if (position, name) not in used)
            for position, model in enumerate(self.inputs.models)
        }
        return {position: names for position, names in unused.items() if names}

    def _held(self) -> int:
        """Return the bytes that the base takes, if prompts run through it before the work."""
        if not self.recipe.reads_prompts or self.recipe.gate_mode == "cheap_embed":
            return 0
        return sum(entry.nbytes for entry in self.base.tensors.values())

    def _mixture(self, weights: list[_Weight], gates: Checkpoint) -> MixturePlan:
        recipe, base = self.recipe, self.base
        block = sum(base.tensors[dense_name(0, projection)].numel for projection in PROJECTIONS)
        expert = block * len(self.layers)
        others = [w for w in weights if w.expert is None]
        shared = expert * len(recipe.shared_experts)
        beside = shared + sum(
            (gates if w.model == self.gates else base).tensors[w.source].numel for w in others
        )
        width = base.tensors[dense_name(0, "gate_proj")].shape[0]
        count = recipe.experts_per_token
        own = self.form.config(len(recipe.experts), count, len(recipe.shared_experts), width)
        assert base.config is not None  # its type chose the architecture
        head = base.tensors[f"{self.layers[0]}.self_attn.q_proj.weight"].shape[0]
        head //= int(base.config["num_attention_heads"])
        step = 2 if self.shared_gate == "weights" else 1
        names = self._gate_names
        return MixturePlan(
            form=self.form,
            recipe=recipe,
            base=base,
            config=mixture_config(base.config, self.form.architecture, own, head),
            gates=self.gates,
            gate_names=tuple(tuple(names[i : i + step]) for i in range(0, len(names), step)),
            parameters=beside + expert * len(recipe.experts),
            active=beside + expert * count,
        )
