"""What a recipe means for one tensor of the reference: its type, its options, which rule merges it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from submerge.algebra import FusedLayout
from submerge.engine.plan.inputs import Inputs
from submerge.engine.plan.projectors import ProjectorPlan
from submerge.engine.plan.tensors._gate import is_head
from submerge.engine.plan.tokens import is_matrix, is_table
from submerge.errors import RequestError
from submerge.methods import GateSpec, TensorSpec
from submerge.names import depths, fused_layout
from submerge.recipe import Recipe, ResolvedValues, resolve
from submerge.store import DTYPES, TensorEntry, dtype_named

__all__ = ["TensorRules"]

_KEPT_WIDE = (".e_score_correction_bias", ".inv_freq", ".freqs_cis")
"""Ends of names of tensors that are not narrowed: biases of routers, frequencies of rotary positions."""


@dataclass(frozen=True)
class TensorRules:
    """What a recipe asks for, tensor by tensor; `copies` maps tensors to those that they are copies of.

    `projectors` are those whose outputs are mixed. `options` gives the value of each option for a parameter
    of this name, where layers are stacked: models then have it under other names, too.
    """

    recipe: Recipe
    inputs: Inputs
    copies: Mapping[str, str]
    projectors: ProjectorPlan | None = None
    options: Callable[[str], ResolvedValues] | None = None

    @property
    def gate(self) -> GateSpec | None:
        """What the method's gate needs, if the method has one."""
        return self.recipe.method.gate

    @property
    def as_adapter(self) -> bool:
        """Whether an adapter is to come out."""
        return self.recipe.output.form == "adapter"

    @property
    def takes_updates(self) -> bool:
        """Whether the method gets updates against the reference, and not the weights themselves."""
        on_base = self.recipe.base is not None and self.recipe.method.origin in ("base", "either")
        return on_base or self.as_adapter

    @property
    def own_heads(self) -> bool:
        """Whether what the base lacks, or has in another shape, is a task's own."""
        return self.gate is not None and self.gate.own_heads

    @cached_property
    def _depths(self) -> dict[str, float]:
        return depths(self.inputs.reference_model.tensors)

    def dtype(self, entry: TensorEntry) -> str:
        """Return the safetensors type in which a float tensor is written.

        The recipe's `dtype` does not narrow what transformers computes with in float32 whatever a model's
        type: what a router adds to scores of experts decides by small differences between large numbers.
        """
        wanted = dtype_named(self.recipe.out_dtype or self.recipe.dtype or entry.dtype) or entry.dtype
        is_kept = entry.name.endswith(_KEPT_WIDE) and DTYPES[entry.dtype].is_wider(DTYPES[wanted])
        return entry.dtype if is_kept else wanted

    def parameter(self, entry: TensorEntry) -> str:
        """Return the name whose options and random numbers a tensor has: its own, or that it is a copy of."""
        return self.copies.get(entry.name, entry.name)

    def is_matrix(self, entry: TensorEntry) -> bool:
        """Return whether a tensor is the matrix of a linear map."""
        return is_matrix(self.parameter(entry), entry.shape, self.inputs.reference_model.config)

    def by_matrix_rule(self, entry: TensorEntry) -> bool:
        """Return whether a tensor is merged by the method's rule for matrices."""
        if self.gate and self.gate.every_tensor:
            return entry.numel > 0
        return self.recipe.method.matrix is not None and self.is_matrix(entry)

    def fused(self, entry: TensorEntry, values: Mapping[str, Any]) -> FusedLayout | None:
        """Return the layout of a matrix whose maps the method is to merge one by one."""
        if values.get("fused") != "split" or not self.by_matrix_rule(entry):
            return None
        return fused_layout(self.parameter(entry), entry.shape, self.inputs.base_config)

    def keeps_low_rank(self, entry: TensorEntry, values: Mapping[str, Any]) -> bool:
        """Return whether a method without a rule for matrices merges a composed model's as Σ c_t Δ_t.

        So the update of adapters has factors, from which the base's values follow for tokens of modalities.
        """
        method = self.recipe.method
        if method.matrix is not None or method.coefficients is None or not self.compares(entry):
            return False
        try:
            method.coefficients(values)
        except RequestError:  # the weights do not sum to 1, and scale the base, too
            return False
        return self.is_matrix(entry)

    def compares(self, entry: TensorEntry) -> bool:
        """Return whether adapters of a composed model may lie on this tensor of the base, in other files."""
        if not self.recipe.composed:
            return False
        return any(self.inputs.models[position].part(entry.name) for position in self.inputs.participants)

    def has_streams(self, entry: TensorEntry) -> bool:
        """Return whether tokens of modalities may run with other values of a tensor than the merged ones.

        Embeddings of placeholders are replaced, and what is said of the last token is text: tables have none.
        """
        own = self.recipe.composed and self.recipe.modality_tokens == "own"
        config = self.inputs.reference_model.config
        return own and not is_table(self.parameter(entry), entry.shape, config)

    def is_task_head(self, entry: TensorEntry) -> bool:
        """Return whether a task names a tensor as part of its head."""
        return any(is_head(entry.name, participant.head) for participant in self.recipe.participants)

    def has_no_place(self, entry: TensorEntry) -> bool:
        """Return whether the output is an adapter, which has no place for a tensor of this kind."""
        if not self.as_adapter or any(entry.name in model.edited for model in self.inputs.models):
            return False
        return not self.is_matrix(entry)

    def allows_other_shape(self, entry: TensorEntry) -> bool:
        """Return whether a model may have a tensor in another shape; the output then has the base's."""
        return self.recipe.rules.shape == "base" or self.own_heads or self.has_no_place(entry)

    def values(self, entry: TensorEntry, count: int) -> dict[str, Any]:
        """Return the options for one tensor of `count` models.

        Raises `RequestError` where the method refuses them.
        """
        parameter, method = self.parameter(entry), self.recipe.method
        options = self.options or (lambda name: resolve(self.recipe, name, self._depths[name]))
        values = options(parameter).values()
        method.check(TensorSpec(entry.name, entry.shape, count), values)
        if self.as_adapter and method.coefficients:
            method.coefficients(values)
        return values
