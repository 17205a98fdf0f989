"""How long a merge will compute, measured on made-up values just now."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from submerge.algebra import Dense, LowRank, Update
from submerge.deferred import np, torch
from submerge.engine.plan import Input, MergePlan, TensorPlan, computed_elements
from submerge.engine.work import (
    ChunkReader,
    RangeTarget,
    Workspace,
    next_pass,
    range_passes,
    run_passes,
    single_threaded,
)
from submerge.kernels import compiling_for
from submerge.store import MemorySource, TensorEntry, rounded

__all__ = ["compute_seconds", "count_passes"]

ELEMENTS = 1 << 20
FEW = 1 << 12
"""Elements of a made-up tensor whose passes are counted."""
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
    with single_threaded, compiling_for(computed_elements(plan.tensors)):
        spent = _streamed_seconds(streamed, plan.recipe.seed) + _matrix_seconds(matrices)
    return spent / plan.budget.workers


def _streamed_seconds(tensors: Sequence[TensorPlan], seed: int) -> float:
    if not tensors:
        return 0.0
    total = sum(t.numel for t in tensors)
    reader, target = _trial(max(tensors, key=lambda t: t.numel), max(1, min(ELEMENTS, total)), seed)
    space = Workspace()
    run_passes(range_passes(reader, target), space)  # the first time warms allocator and caches
    begun = time.perf_counter()
    run_passes(range_passes(reader, target), space)
    return (time.perf_counter() - begun) * total / reader.plan.numel


def count_passes(plan: MergePlan) -> int:
    """Return how often a merge goes over its inputs, as it does with made-up values.

    A matrix is read to be decomposed, and once more when its ranges are written.
    """
    streamed = [t for t in plan.tensors if t.action == "merge" and not t.matrix]
    counts = [2] if any(t.matrix for t in plan.tensors) else [1]
    if streamed:
        largest = max(streamed, key=lambda t: t.numel)
        with compiling_for(FEW):
            counts.append(_passes_of(*_trial(largest, max(1, min(FEW, largest.numel)), plan.recipe.seed)))
    return max(counts)


def _passes_of(reader: ChunkReader, target: RangeTarget) -> int:
    """Run the passes that merge a tensor, and return how many there are."""
    job, space, count = range_passes(reader, target), Workspace(), 0
    step = next_pass(job, None)
    while step is not None:
        count += 1
        step = next_pass(job, step.combine([step.work(one, space) for one in step.ranges]))
    return count


def _trial(tensor: TensorPlan, elements: int, seed: int) -> tuple[ChunkReader, RangeTarget]:
    """Return a made-up tensor of so many elements that is merged as this one, and a target for it."""
    side = tensor.shape[-1] if len(tensor.shape) > 1 else elements
    shape = (max(1, elements // side), side)
    entry = TensorEntry("trial", "BF16", shape, None, 0, 0)
    made_up = Input(0, entry)
    trial = replace(
        tensor,
        name="trial",
        shape=shape,
        inputs=(made_up,) * len(tensor.inputs),
        origin=made_up if tensor.origin else None,
        matrix=False,
    )
    draw = np.random.default_rng(0)
    base = draw.standard_normal(trial.numel, np.float32)
    sources = [
        MemorySource(rounded(base + draw.standard_normal(trial.numel, np.float32) / 100, entry.dtype))
        for _ in trial.read
    ]
    target = RangeTarget(0, entry, _Nowhere(), lambda record: None)
    return ChunkReader(trial, sources, seed=seed), target


def _matrix_seconds(tensors: Sequence[TensorPlan]) -> float:
    """Return how long the matrices take, by the time of a small one of the largest's proportions."""
    if not tensors:
        return 0.0
    tensors = [replace(t, shape=sides, fused=None) for t in tensors for sides in t.matrices]
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
