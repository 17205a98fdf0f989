"""What a merge method is: facts about it, its options, and a fold over chunks of one tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from submerge.deprecated import takes_old_arguments, warn_renamed
from submerge.methods._calibration_spec import CalibrationSettings, CalibrationSpec
from submerge.methods._contract import Fold, FoldPlan, MatrixFold, Merged, TensorSpec, Values
from submerge.methods._gate_spec import BankBound, BankBoundRule, GateSettings, GateSpec
from submerge.methods._option import REQUIRED, Option

__all__ = [
    "REQUIRED",
    "BankBound",
    "CalibrationSettings",
    "CalibrationSpec",
    "Fold",
    "FoldPlan",
    "GateSettings",
    "GateSpec",
    "MatrixFold",
    "Merged",
    "Method",
    "Option",
    "TensorSpec",
    "Values",
]


def _to_gate(given: dict[str, Any]) -> None:
    """Make one gate of `settings` and `kept`: it has all that every gate once had."""
    old = {name: given.pop(name) for name in ("settings", "kept") if name in given}
    if old.get("settings"):
        warn_renamed("Method(settings=…, kept=…)", "Method(gate=GateSpec(…))", 4)
        bound = old.get("kept") or (lambda spec, values, rank: BankBound(0))
        gate = GateSpec(old["settings"], bound, every_tensor=True, own_heads=True, partial_models=True)
        given.setdefault("gate", gate)


@takes_old_arguments(_to_gate)
@dataclass(frozen=True)
class Method:
    """A merge method: a fold over chunks, and for methods built on singular vectors one over matrices.

    Attributes:
        name: as recipes write it.
        title: as the papers write it.
        equation: what it computes, in plain text.
        source: the paper.
        use: when to take it, in a sentence.
        plan: gets the tensor and the resolved options, and returns a fold, whose result is added to the
            origin.
        options: its parameters.
        matrix: merges the weight matrices, as `Update` objects. `plan` is then the rule for all other
            tensors: norms, biases, embeddings.
        both_sides: whether `matrix` decomposes Gram matrices of both sides of dense updates, and not of the
            short side alone.
        coefficients: of methods whose merged update is Σ c_t Δ_t with constants c_t, which keep low-rank
            updates low-rank.
        origin: what the updates are taken against: `"base"` (Δ_t = θ_t − θ_0; a base is required), `"zero"`
            (the weights themselves), or `"either"` (the base where the recipe names one).
        base_is_model: whether a base that the recipe names takes part as the first model.
        base_required: whether a recipe without a base is refused although the origin needs none.
        min_models: the fewest models that are merged.
        max_models: the most; None for any number.
        width: the run length that a chunk must hold a whole number of: 1 for element-wise folds.
        gate: of methods whose merge is evaluated for each input. `matrix` then returns beside the update (the
            static merge) what a bank holds for the run time.
        calibration: of methods that learn the values of an option from unlabelled inputs before the merge.
        moments: whether `matrix` gets the second moments of each model's inputs, which are collected from its
            data before the merge, or read from a folder of them. The method has the options `statistics`,
            `batch_size` and `max_length`.
        mixes_projectors: whether projectors' outputs are mixed, where several models of a multimodal base
            have one of their own, unless the recipe says otherwise.
        refuse: raises `RequestError` where the options of a tensor cannot be. Without it the plan of every
            tensor is started once before any work, and may refuse them before its first reduction.
        differs: where papers and other tools compute something else.

    Examples:
        >>> import submerge
        >>> from submerge.algebra import combine
        >>> from submerge.methods import Method, Option
        >>> def plan(spec, values):
        ...     yield from ()  # no reduction is needed
        ...     return lambda chunk: combine(chunk.values, [values["scale"] / spec.count] * spec.count)
        >>> method = Method(
        ...     name="mean",
        ...     title="Mean update",
        ...     equation="θ = θ_0 + s/T Σ Δ_t",
        ...     source="an example",
        ...     use="Shows what a method is.",
        ...     plan=plan,
        ...     options=(Option("scale", float, 1.0, "factor s on the merged update", tune=True),),
        ... )
        >>> models = [{"model": "chat"}, {"model": "code"}]
        >>> recipe = {"merge_method": "mean", "base_model": "base", "models": models}
        >>> submerge.merge(submerge.load_recipe(recipe, methods={"mean": method}), "mean").tensors
        {'merge': 39}
    """

    name: str
    title: str
    equation: str
    source: str
    use: str
    plan: Callable[[TensorSpec, Values], FoldPlan]
    options: tuple[Option, ...] = ()
    matrix: MatrixFold | None = None
    both_sides: bool = False
    coefficients: Callable[[Values], Sequence[float]] | None = None
    origin: Literal["base", "zero", "either"] = "base"
    base_is_model: bool = False
    base_required: bool = False
    min_models: int = 1
    max_models: int | None = None
    width: Callable[[TensorSpec, Values], int] = lambda spec, values: 1
    gate: GateSpec | None = None
    calibration: CalibrationSpec | None = None
    moments: bool = False
    mixes_projectors: bool = False
    refuse: Callable[[TensorSpec, Values], None] | None = None
    differs: str = ""

    @property
    def needs_base(self) -> bool:
        """Whether a recipe without `base_model` is refused."""
        return self.origin == "base" or self.base_required

    def check(self, spec: TensorSpec, values: Values) -> None:
        """Raise `RequestError` where the options of a tensor cannot be."""
        if self.refuse is not None:
            self.refuse(spec, values)
            return
        steps = self.plan(spec, values)
        next(steps, None)
        steps.close()

    def option(self, name: str) -> Option | None:
        """Return the option that is written `name`, or None."""
        own = next((o for o in self.options if o.name == name), None)
        return own or next((o for o in self.options if name in o.names), None)

    @property
    def keeps(self) -> bool:
        """Deprecated: `gate is not None`."""
        warn_renamed("Method.keeps", "Method.gate")
        return self.gate is not None

    @property
    def settings(self) -> GateSettings | None:
        """Deprecated: `gate.settings`."""
        warn_renamed("Method.settings", "Method.gate.settings")
        return self.gate.settings if self.gate else None

    @property
    def kept(self) -> BankBoundRule | None:
        """Deprecated: `gate.bound`."""
        warn_renamed("Method.kept", "Method.gate.bound")
        return self.gate.bound if self.gate else None
