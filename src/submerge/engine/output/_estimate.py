"""How long a merge will compute, measured on made-up values just now."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from submerge.algebra import Dense, LowRank, Update
from submerge.deferred import np, torch
from submerge.engine.plan import Input, MergePlan, TensorPlan
from submerge.engine.work import (
    ChunkReader,
    RangeTarget,
    Workspace,
    range_passes,
    run_passes,
    single_threaded,
)
from submerge.kernels import compiling_for
from submerge.store import MemorySource, TensorEntry, rounded

__all__ = ["compute_seconds"]

ELEMENTS = 1 << 20
SIDE = 512
"""The longest side of a made-up matrix."""


class _Nowhere:
    def write(self, entry: TensorEntry, start: int, data: memoryview) -> None:
        pass


def compute_seconds(plan: MergePlan) -> float:
    """Return an estimate of the workers' time, in seconds, without what the disk adds.

    Folds a made-up tensor of a million elements at most with the options of the plan's largest tensor, merges
    one made-up matrix where matrices are decomposed, and scales by elements, sizes and workers. Good to a
    factor of two or three on a quiet machine.
    """
    merged = [t for t in plan.tensors if t.action == "merge"]
    matrices = [t for t in merged if _is_decomposed(t)]  # others: next to nothing
    streamed = [t for t in merged if not t.matrix or t.by_rows]
    if matrices:
        import torch  # noqa: F401 # `single_threaded` holds it to one thread if it is there
    with single_threaded, compiling_for(sum(t.numel for t in plan.tensors)):
        spent = _streamed_seconds(streamed, plan.recipe.seed) + _matrix_seconds(matrices)
    return spent / plan.budget.workers


def _streamed_seconds(tensors: Sequence[TensorPlan], seed: int) -> float:
    if not tensors:
        return 0.0
    largest, total = max(tensors, key=lambda t: t.numel), sum(t.numel for t in tensors)
    elements = max(1, min(ELEMENTS, total))
    side = largest.shape[-1] if len(largest.shape) > 1 else elements
    shape = (max(1, elements // side), side)
    entry = TensorEntry("trial", "BF16", shape, None, 0, 0)
    made_up = Input(0, entry)
    trial = replace(
        largest,
        name="trial",
        shape=shape,
        inputs=(made_up,) * len(largest.inputs),
        origin=made_up if largest.origin else None,
        matrix=False,
    )
    draw = np.random.default_rng(0)
    base = draw.standard_normal(trial.numel, np.float32)
    sources = [
        MemorySource(rounded(base + draw.standard_normal(trial.numel, np.float32) / 100, entry.dtype))
        for _ in trial.read
    ]
    reader = ChunkReader(trial, sources, seed=seed)
    target = RangeTarget(0, entry, _Nowhere(), lambda record: None)
    space = Workspace()
    run_passes(range_passes(reader, target), space)  # the first time warms allocator and caches
    begun = time.perf_counter()
    run_passes(range_passes(reader, target), space)
    return (time.perf_counter() - begun) * total / trial.numel


def _matrix_seconds(tensors: Sequence[TensorPlan]) -> float:
    """Return how long the matrices take, by the time of a small one of the largest's proportions."""
    if not tensors:
        return 0.0
    largest = max(tensors, key=_work)
    shrunk = min(1.0, SIDE / max(largest.sides))
    m, n = (max(2, round(side * shrunk)) for side in largest.sides)
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    bank: list[Update] = [
        LowRank(normal(m, max(1, i.rank)), normal(max(1, i.rank), n)) if not i.dense else Dense(normal(m, n))
        for i in largest.inputs
    ]
    small = replace(largest, shape=(m, n), moments=None, layer=None)
    fold = small.method.matrix if small.method else None
    assert fold is not None  # what made it a matrix
    fold(bank, small.spec, small.values)
    begun = time.perf_counter()
    fold(bank, small.spec, small.values)
    return (time.perf_counter() - begun) * sum(_work(t) for t in tensors) / _work(small)


def _is_decomposed(tensor: TensorPlan) -> bool:
    return tensor.matrix and not tensor.by_rows and tensor.method is not None and bool(tensor.method.matrix)


def _work(tensor: TensorPlan) -> float:
    """Return what the time of merging a matrix is proportional to."""
    m, n = tensor.sides
    dense = any(i.dense for i in tensor.inputs)
    rank = max(1, sum(i.rank for i in tensor.inputs))
    return float(m * n * min(m, n)) if dense else float((m + n) * rank**2)
