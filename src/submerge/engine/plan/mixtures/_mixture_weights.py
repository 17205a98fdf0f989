"""The tensors of a mixture of experts: each is one of one model's, or one that no file has.

Attention, norms and embeddings are the base's. The feed-forward block of each model is an expert, under a
name of its own. What no file has, such as the weights of gates, is in one more model: random numbers and
zeros are computed when they are read; what prompts decide on gets its values before the work.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import sqrt

from submerge.algebra import stream_key
from submerge.engine.plan.inputs import Inputs
from submerge.engine.plan.mixtures._mixture_forms import DEEPSEEK, PROJECTIONS, MixtureForm
from submerge.engine.plan.mixtures._mixture_sources import LAYERS, count_layers, dense_name, is_feed_forward
from submerge.engine.plan.mixtures._random_rows import RandomRows
from submerge.names import is_buffer
from submerge.recipe import Expert, MixtureRecipe
from submerge.store import Checkpoint, ComputedRows, RowSource, TensorEntry

__all__ = ["MixtureWeights", "Weight"]

GATES = "gates"
"""What the model is called that has what no file has."""
FLOAT = "F32"
"""Its type."""
HALF = 0.5
"""What a gate without weights gives: σ(0)."""


@dataclass(frozen=True)
class Weight:
    """A tensor of the output: its name, and whose tensor of what name it is, with what becomes of it."""

    name: str
    model: int
    source: str
    expert: Expert | None = None
    values: Mapping[str, float] = field(default_factory=dict)


@dataclass
class MixtureWeights:
    """The tensors of a mixture of `inputs`: models under the base's names, the base first.

    Attributes:
        entries: by name, what no file has, as the tensors of one more model.
        computed: the values of those of them that are known.
    """

    recipe: MixtureRecipe
    form: MixtureForm
    inputs: Inputs
    entries: dict[str, TensorEntry] = field(default_factory=dict)
    computed: dict[str, RowSource] = field(default_factory=dict)

    @property
    def base(self) -> Checkpoint:
        """The model that gives all but the experts."""
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

    @cached_property
    def gate_names(self) -> tuple[tuple[str, ...], ...]:
        """The tensors of each layer's gates that prompts or chance decide on."""
        form, shared = self.form, self.shared_gate == "weights"
        return tuple(
            (form.gate(layer), *((form.shared_gate(layer),) if shared else ())) for layer in self.layers
        )

    @cached_property
    def all(self) -> tuple[Weight, ...]:
        """All tensors."""
        return (*self._of_base(), *self._of_experts(), *self._of_shared(), *self._of_gates())

    @property
    def gate_model(self) -> Checkpoint:
        """The model that has what no file has."""
        assert self.all  # which notes what there is
        return Checkpoint(GATES, self.base.path, None, self.entries, {}, computed=self.computed)

    def _of_base(self) -> Iterator[Weight]:
        """Yield all tensors of the base but those of its feed-forward blocks."""
        for name in self.base.tensors:
            if not is_feed_forward(name) and not is_buffer(name):
                yield Weight(name, 0, name)
        for layer in self.layers if self.form.needs_biases else ():
            for side in "qkv":
                name = f"{layer}.self_attn.{side}_proj.bias"
                if name not in self.base.tensors:
                    rows = self.base.tensors[f"{layer}.self_attn.{side}_proj.weight"].shape[0]
                    yield self._new(name, (rows,), ComputedRows((), FLOAT))

    def _of_experts(self) -> Iterator[Weight]:
        for layer, prefix in enumerate(self.layers):
            for number, expert in enumerate(self.recipe.experts):
                for projection in PROJECTIONS:
                    name = self.form.expert(prefix, number, projection)
                    yield self._of_expert(expert, name, layer, projection)

    def _of_shared(self) -> Iterator[Weight]:
        """Yield the blocks of the shared expert; what a gate of zeros halves is doubled."""
        scale = 1 / HALF if self.shared_gate == "constant" else 1.0
        for layer, prefix in enumerate(self.layers):
            for expert in self.recipe.shared_experts:
                for projection in PROJECTIONS:
                    name = self.form.shared_expert(prefix, projection)
                    yield self._of_expert(expert, name, layer, projection, scale)

    def _of_expert(
        self, expert: Expert, name: str, layer: int, projection: str, scale: float = 1.0
    ) -> Weight:
        position = self.inputs.position(expert.model)
        scale *= expert.residual_scale
        values = {
            "noise_scale": expert.noise_scale,
            "residual_scale": scale if projection == "down_proj" else 1.0,
        }
        return Weight(name, position, dense_name(layer, projection), expert, values)

    def _of_gates(self) -> Iterator[Weight]:
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

    def _new(self, name: str, shape: tuple[int, ...], rows: RowSource | None) -> Weight:
        """Return a tensor that no file has, after noting it for the model that has it."""
        self.entries[name] = TensorEntry.in_memory(name, FLOAT, shape)
        if rows is not None:
            self.computed[name] = rows
        return Weight(name, self.gates, name)
