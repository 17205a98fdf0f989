"""NSC: the weighted sum of adapters, with weights that are learned from unlabelled inputs.

θ = θ_0 + s Σ λ_t Δ_t, with a λ_t of its own for each module. The λ are those that make small what the merged
model's activations x on inputs of task t have in the null space of A_t, where Δ_t = B_t A_t:

    L(λ) = 1/T Σ_t mean_x ω_t(x),     ω_t(x) = ‖x − A_tᵀ (A_t A_tᵀ)⁻¹ A_t x‖ / ‖x‖.

Neither labels nor outputs are looked at (arXiv 2603.26317, §3). `submerge.learn_coefficients` learns them,
and a recipe may take them from a file (`coefficients`), or give them by hand (`weight`).

Of adapters the sum is exact, as that of `cat`: factors side by side, of rank Σ r_t. Coefficients of rank-one
units scale the columns of a factor: s Σ B_t diag(λ_t) A_t.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from submerge.algebra import LowRank, Update, combine, weighted_sum
from submerge.errors import Problem, RequestError
from submerge.methods._base import REQUIRED, FoldPlan, Merged, Method, Option, TensorSpec, Values
from submerge.methods._calibration_spec import CalibrationSpec

__all__ = ["METHODS", "PRESETS"]

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "paper": {
        "steps": 500,
        "learning_rate": 3e-4,
        "hooks": "last_quarter: v_proj|value",
        "initial": 0.4,
        "weight_decay": 0.01,
        "where_rising": "learn",
    },
    "match": {"objective": "match", "learning_rate": 1e-2},
}
"""The options that a preset changes; what a recipe gives comes first."""

PAPER_VISION: Mapping[str, Any] = {"steps": 100, "learning_rate": 1e-3}
"""What `preset: paper` changes besides for a base of images alone."""

ANY = 3e38
"""What no λ is beyond, as a bound that float32 has."""


def _learned(name: str, default: Any, help: str, **more: Any) -> Option:
    return Option(name, more.pop("kind", type(default)), default, help, single=True, **more)


OPTIONS = (
    Option("weight", float, REQUIRED, "λ of a model; learned where it is not given", scope="model"),
    Option("scale", float, 1.0, "factor s on the merged update", tune=True),
    _learned("preset", "default", "what the options below are by default", choices=tuple(PRESETS)),
    _learned("steps", 100, "steps of AdamW; 0 learns nothing, and only measures", low=0),
    _learned("learning_rate", 1e-3, "of AdamW", low=1e-9),
    _learned("batch_size", 16, "inputs of each task in a step", low=1),
    _learned("hooks", "last_quarter", "modules whose inputs count: last_quarter, or a regular expression"),
    _learned("initial", 0.4, "λ before the first step, and where nothing is learned"),
    _learned("weight_decay", 0.0, "of AdamW", low=0),
    _learned(
        "objective",
        "null_space",
        "what is made small: the ratio, its square over sums, or the distance to each single model's inputs",
        choices=("null_space", "energy", "match"),
    ),
    _learned(
        "parametrisation",
        "module",
        "one λ an adapter and: module, kind of module (q_proj), nothing else, or rank-one unit",
        choices=("module", "type", "adapter", "unit"),
    ),
    _learned("low", "none", "the least λ", kind=float, word="none"),
    _learned("high", "none", "the largest λ", kind=float, word="none"),
    _learned("pull", 0.0, "factor on the mean (λ − initial)², which is added to the loss", low=0),
    _learned(
        "where_rising",
        "keep",
        "adapters whose ratio does not fall with λ: keep their initial λ, or learn them all the same",
        choices=("keep", "learn"),
    ),
    _learned("max_length", 512, "tokens to which texts are cut", low=1),
    _learned("checkpointing", False, "whether blocks are computed twice, which takes less memory"),
    _learned(
        "compute_dtype",
        "auto",
        "number format of the base while λ is learned; auto: its own",
        choices=("auto", "float32", "bfloat16", "float16"),
    ),
)


def _settings(given: Mapping[str, Any], vision: bool) -> dict[str, Any]:
    """Return the arguments of `learn_coefficients`: the recipe's, else the preset's, else the defaults."""
    preset = given.get("preset", "default")
    chosen = {o.name: o.default for o in OPTIONS if o.single} | dict(PRESETS[preset])
    chosen |= {**(PAPER_VISION if vision and preset == "paper" else {}), **given}
    del chosen["preset"]
    bounds = _bounds(chosen.pop("low"), chosen.pop("high"), chosen["initial"])
    dtype = chosen.pop("compute_dtype")
    _check_pattern(chosen["hooks"])
    return chosen | {"bounds": bounds, "dtype": None if dtype == "auto" else dtype}


def _bounds(low: float | str, high: float | str, initial: float) -> tuple[float, float] | None:
    """Return the least and the largest λ, or None where neither is given."""
    least, most = float(-ANY if low == "none" else low), float(ANY if high == "none" else high)
    if not least <= initial <= most:
        what = f"initial is {initial:g}, which is not between low ({low}) and high ({high})"
        raise RequestError(Problem(what, "parameters", "choose bounds around it"))
    return None if (low, high) == ("none", "none") else (least, most)


def _check_pattern(hooks: str) -> None:
    """Raise `RequestError` where hooks are no regular expression; what it matches, the base says."""
    try:
        re.compile(hooks.partition("last_quarter:")[2] or hooks)
    except re.error as error:
        what = f"hooks is {hooks!r}, which is no regular expression ({error})"
        raise RequestError(Problem(what, "parameters", "write last_quarter, or 'v_proj'")) from error


def _coefficients(o: Values) -> Sequence[float]:
    """Return what each update is multiplied by, once one with numbers for its rank-one units has these."""
    return [o["scale"] * (1.0 if isinstance(weight, tuple) else weight) for weight in o["weight"]]


def _plan(spec: TensorSpec, o: Values) -> FoldPlan:
    yield from ()  # no reduction is needed
    factors = _coefficients(o)
    return lambda chunk: combine(chunk.values, factors)


def _matrix(updates: Sequence[Update], spec: TensorSpec, o: Values) -> Merged:
    """Return s Σ λ_t Δ_t, where λ_t may be a tuple with a number for each rank-one unit."""
    pairs = zip(updates, o["weight"], strict=True)
    terms = [_by_unit(update, w) if isinstance(w, tuple) else update for update, w in pairs]
    return Merged(weighted_sum(terms, _coefficients(o)))


def _by_unit(update: Update, units: Sequence[float]) -> Update:
    """Return B diag(λ) A for the r numbers λ of an update B A; a zero update has no units."""
    if not isinstance(update, LowRank):
        return update
    return LowRank(update.left * update.left.new_tensor(units), update.right)


METHODS = (
    Method(
        name="nsc",
        title="NSC (null-space compression)",
        equation="θ = θ_0 + s Σ λ_t Δ_t, with λ_t of each module from unlabelled inputs",
        source="arXiv 2603.26317",
        use="LoRA adapters whose strengths in each layer are to be found from unlabelled inputs.",
        plan=_plan,
        matrix=_matrix,
        coefficients=_coefficients,
        options=OPTIONS,
        calibration=CalibrationSpec(_settings),
        differs="λ stays as it is where the ratio does not fall with λ; preset: paper learns it all the same",
    ),
)
