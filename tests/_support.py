"""Builders that the tests of the algebra, the methods and the engine share."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from submerge.algebra import Chunk, Reduction, bernoulli, random_words
from submerge.engine import merge_state_dicts
from submerge.methods import METHODS

State = dict[str, torch.Tensor]

SHAPES: dict[str, tuple[int, ...]] = {
    "scalar": (),
    "single": (1,),
    "norm": (37,),
    "matrix": (24, 17),
    "column": (19, 1),
    "cube": (3, 4, 5),
    "conv": (4, 3, 2, 5),
    "empty": (0,),
    "no_columns": (3, 0),
    "no_rows": (0, 3),
}


def state(
    seed: int, shapes: Mapping[str, tuple[int, ...]] = SHAPES, dtype: torch.dtype = torch.float32
) -> State:
    """Return a state dict of normal numbers."""
    random = torch.Generator().manual_seed(seed)
    return {k: torch.randn(s, generator=random, dtype=torch.float64).to(dtype) for k, s in shapes.items()}


def family(
    count: int,
    shapes: Mapping[str, tuple[int, ...]] = SHAPES,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    size: float = 0.1,
) -> tuple[State, list[State]]:
    """Return a base, and `count` models whose updates are `size` as large as its weights."""
    base = state(seed, shapes, torch.float64)
    updates = [state(seed + 1 + t, shapes, torch.float64) for t in range(count)]
    models = [{k: (base[k] + size * u[k]).to(dtype) for k in base} for u in updates]
    return {k: v.to(dtype) for k, v in base.items()}, models


@dataclass(frozen=True)
class Case:
    """A method with options, as the tests call it.

    `models` and `base` say what it is given. `exact`: no sum over a tensor enters the result, so that
    it has the same bits whatever the chunks. `random`: it draws masks.
    """

    name: str
    method: str
    options: dict[str, Any] = field(default_factory=dict)
    models: int = 3
    base: bool = True
    exact: bool = True
    random: bool = False

    def __str__(self) -> str:
        return self.name

    @property
    def values(self) -> dict[str, Any]:
        """The options with the method's defaults, one value a model where they are the models' own."""
        given = {o.name: o.default for o in METHODS[self.method].options} | self.options
        shared = {o.name for o in METHODS[self.method].options if o.scope == "shared"}
        return {k: v if k in shared or isinstance(v, list) else [v] * self.models for k, v in given.items()}

    def merge(self, base: State | None, models: Sequence[State], **more: Any) -> State:
        """Return the merge of the models, with the base if the case has one."""
        base = base if self.base else None
        return merge_state_dicts(models, base=base, method=self.method, **(self.options | more))


WEIGHTS = [0.5, 1.0, 1.25]
"""Dyadic, so that products with 16-bit weights are exact in float32 and ties of signs stay ties."""


def _case(name: str, *, exact: bool = True, models: int = 3, base: bool = True, **options: Any) -> Case:
    method = name.partition("-")[0]
    known = {o.name for o in METHODS[method].options}
    if "weight" in known:
        options.setdefault("weight", WEIGHTS[:models])
    random = method.startswith(("dare", "della"))
    return Case(name, method, options, models, base, exact, random)


CASES = (
    _case("linear", base=False),
    _case("linear-sum", base=False, normalize=False),
    _case("passthrough", base=False, models=1, scale=[0.75]),
    _case("slerp", models=1, t=0.3, exact=False),
    _case("nuslerp", models=2, exact=False),
    _case("nuslerp-weights", models=2, base=False, exact=False),
    _case("nuslerp-rows", models=2, nuslerp_flatten=False, exact=False),
    _case("nuslerp-columns", models=2, nuslerp_flatten=False, nuslerp_row_wise=True, exact=False),
    _case("karcher", base=False, exact=False, max_iter=50, tol=1e-9),
    _case("karcher-step", base=False, exact=False, max_iter=1),
    _case("karcher-base", exact=False, max_iter=50, tol=1e-9),
    _case("multislerp", exact=False),
    _case("multislerp-weights", base=False, exact=False, normalize_weights=False),
    _case("multislerp-mixed", exact=False, weight=[0.75, -0.5, 1.0], eps=1e-3),
    _case("nearswap", models=1, t=0.05),
    _case("nearswap-near", models=1, t=5e-7),
    _case("arcee_fusion", models=1, exact=False),
    _case("ram", epsilon=0.1),
    _case("ramplus_tl", epsilon=0.1, exact=False),
    _case("ramplus_tl-overlap", epsilon=0.05, r=0.5, alpha=10.0, exact=False),
    _case("model_stock", exact=False),
    _case("model_stock-rows", filter_wise=True, exact=False),
    _case("model_stock-paper", variant="paper", exact=False),
    _case("sce", exact=False),
    _case("sce-half", select_topk=0.5, exact=False),
    _case("sce-paper", select_topk=0.75, variant="paper", exact=False),
    _case("task_arithmetic", **{"lambda": 0.5}),
    _case("task_arithmetic-normalize", normalize=True),
    _case("ties", density=0.25),
    _case("ties-each", density=[0.0, 0.5, 1.0]),
    _case("ties-sum", density=0.5, normalize=False, **{"lambda": 1.5}),
    _case("ties-rescale", density=0.25, rescale=True, exact=False),
    _case("ties-paper", density=0.25, variant="paper"),
    _case("breadcrumbs", density=0.5, gamma=0.125),
    _case("breadcrumbs-each", density=[0.0, 0.9, 1.0], gamma=[0.1, 0.5, 0.1]),
    _case("breadcrumbs_ties", density=0.5, gamma=0.125),
    _case("dare_linear", density=0.5, exact=False),
    _case("dare_linear-paper", density=0.25, variant="paper"),
    _case("dare_linear-bare", density=[0.0, 0.25, 1.0], rescale=False),
    _case("dare_ties", density=0.5, exact=False),
    _case("dare_ties-paper", density=0.5, variant="paper"),
    _case("della", density=0.5, epsilon=0.25, exact=False),
    _case("della-paper", density=0.5, epsilon=0.25, variant="paper"),
    _case("della_linear", density=0.5, epsilon=[0.0, 0.25, 0.375], exact=False),
    _case("della_linear-paper", density=[0.5, 1.0, 0.25], epsilon=0.125, variant="paper"),
)
"""Every method that merges chunks, with options that touch each of its branches."""

MATRIX_CASES = (
    _case("cat", scale=0.5),
    _case("knots_ties", exact=False, density=0.5),
    _case("tsv_m", exact=False),
    _case("iso_c", exact=False),
    _case("iso_cts", exact=False),
    _case("ssam", exact=False, rank="4"),
    _case("wudi", exact=False, time=3.0),
    _case("wudi-adaptive", exact=False, variant="aswudi"),
    _case("nsc", exact=False, scale=0.5),
    _case("many", exact=False, scale=1.5, statistics="identity"),
    _case("regmean", exact=False, statistics="identity"),
    _case("mass", exact=False),
)
"""The methods that merge weight matrices whole (and `cat`), which have tests of their own."""


def case_of(method: str) -> Case:
    """Return the first case of a method."""
    case = next((case for case in (*CASES, *MATRIX_CASES) if case.method == method), None)
    assert case is not None, f"{method} has no case: CASES or MATRIX_CASES of tests/_support.py needs one"
    return case


DETERMINISTIC = [case for case in CASES if not case.random]
RANDOM = [case for case in CASES if case.random]
UPDATES = [case for case in CASES if case.base and METHODS[case.method].origin != "zero"]
"""The cases that merge updates of a base, not weights."""


def random_mask(method: str, stream: int, probabilities: torch.Tensor) -> torch.Tensor:
    """Return which entries DARE (all of one probability) or DELLA keeps, by the stream of a model."""
    count = probabilities.numel()
    if method.startswith("dare"):
        return bernoulli(stream, 0, count, probabilities.flatten()[0].item()).view_as(probabilities) > 0
    width = probabilities.shape[-1] if probabilities.dim() else 1
    rows = probabilities.double().numpy().reshape(-1, max(1, width))
    words = np.empty(count, np.uint32)
    random_words(stream, 0, words)
    kept = np.empty(rows.shape, bool)
    for row, own, out in zip(rows, words.reshape(rows.shape), kept, strict=True):
        out[:] = _kept_of_row(row, own)
    return torch.from_numpy(kept).view_as(probabilities)


def _kept_of_row(probabilities: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Return which entries of a row are kept: those of the least probability, and by a random other one."""
    least, most = (int(p * 2**32) for p in (probabilities.min(), probabilities.max()))
    kept = words < least
    for i in np.flatnonzero((words >= least) & (words < most)):
        others = np.delete(probabilities, i)
        kept[i] = others[(int(words[i]) - least) * others.size // (most - least)] < probabilities[i]
    return kept


def pieces(updates: torch.Tensor, spans: Sequence[tuple[int, int]], width: int = 1) -> Iterator[Chunk]:
    """Return a chunk for each [start, stop) of the updates [T, n]."""
    for start, stop in spans:
        part = updates[:, start:stop].clone()
        finite = bool(torch.isfinite(part).all())
        yield Chunk(start, part, width, finite, range(len(part)))


def drive(
    plan: Generator[Reduction[Any, Any], Any, Any],
    updates: torch.Tensor,
    *,
    length: int,
    width: int = 1,
    sample: Sequence[tuple[int, int]] = ((0, 64),),
    seen: Callable[[Reduction[Any, Any]], None] = lambda reduction: None,
) -> Any:
    """Run a plan over the updates in chunks of `length`, seen last to first; return what it returns."""
    n = updates.shape[1]
    spans = [(a, min(a + length, n)) for a in range(0, n, length)]
    found = None
    for _ in range(100):
        try:
            reduction = plan.send(found)
        except StopIteration as end:
            return end.value
        seen(reduction)
        chunks = list(pieces(updates, sample if reduction.sample else spans, width))
        parts = [reduction.observe(chunk) for chunk in reversed(chunks)]
        found = reduction.combine(parts[::-1])
    raise AssertionError("the plan does not end")
