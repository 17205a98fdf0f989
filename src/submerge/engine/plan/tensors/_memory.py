"""How much memory a merge takes, and how many workers fit in what it may take."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from submerge.engine.plan.tensors._tensor import (
    HELD,
    TensorPlan,
    chunk_length,
    computed_elements,
    read_length,
)
from submerge.errors import Problem, RequestError
from submerge.kernels import worth_compiling
from submerge.process import peak_resident
from submerge.store import Checkpoint

__all__ = ["Budget", "budget", "reading_bytes", "resident"]

RESERVE = 96 << 20
"""For what is not counted by the byte: allocator slack, thread stacks, the plan's own growth."""
NUMBA, TORCH = 144 << 20, 192 << 20
"""What the import of a package adds, and the first compiled loop."""
COLLECTED = 1 << 20
"""Values that a search for a threshold collects for each model (see `algebra._select`)."""

FACTORS, RESULTS, SQUARES = 4, 3, 5
"""Copies of all factors, of a dense result, and of a Gram matrix that merging a matrix holds at once."""
MOMENTS = 6
"""Copies of a second moment: one that is read, as it is prepared, the sum, and its factorisation."""


@dataclass(frozen=True)
class Budget:
    """The workers that run, what each takes at most, and what the process held before, in bytes.

    `data_passes` is what passes over data before the merge hold, without activations: the base, and moments.
    """

    workers: int
    per_worker: int
    resident: int
    data_passes: int = 0

    @property
    def peak(self) -> int:
        """The estimate of the most that the process will hold."""
        return self.resident + RESERVE + max(self.workers * self.per_worker, self.data_passes)


def budget(
    tensors: Sequence[TensorPlan],
    models: Sequence[Checkpoint],
    workers: int,
    max_memory: int,
    *,
    data_passes: int = 0,
    beside: int = 0,
) -> Budget:
    """Return the workers that fit into `max_memory` bytes; raise `RequestError` if not even one does.

    `beside` are bytes that rows of new tokens hold beside the workers. It raises, too, where the
    `data_passes` bytes that passes over data before the merge hold do not fit.
    """
    need, widest = max(((_worker_bytes(t), t.name) for t in tensors), default=(0, ""))
    need += _virtual_bytes(models)
    held = resident()
    now = held + _imported(tensors) + beside
    fitting = (max_memory - now - RESERVE) // need if need else workers
    if fitting < 1:
        least = -(-(now + RESERVE + need) // 10**6)
        raise RequestError(
            Problem(
                f"{max_memory / 1e6:.0f} MB do not hold one worker, whose largest need is tensor {widest}",
                "--max-memory",
                f"allow at least {least} MB (from Python: `Settings(max_memory=…)`); this process already "
                f"holds {held // 10**6} MB",
            )
        )
    if data_passes and now + RESERVE + data_passes > max_memory:
        least = -(-(now + RESERVE + data_passes) // 10**6)
        what = f"{max_memory / 1e6:.0f} MB do not hold the base, through which data runs before the merge"
        raise RequestError(
            Problem(what, "--max-memory", f"allow at least {least} MB, and what activations take")
        )
    return Budget(int(min(workers, fitting)), need, now, data_passes)


def _imported(tensors: Sequence[TensorPlan]) -> int:
    """Return what is held besides as soon as the packages are imported that the work needs."""
    needs = {
        "numba": NUMBA if worth_compiling(computed_elements(tensors)) else 0,
        "torch": TORCH if any(tensor.uses_torch for tensor in tensors) else 0,
    }
    return sum(size for package, size in needs.items() if package not in sys.modules)


def reading_bytes(tensors: Sequence[TensorPlan], models: Sequence[Checkpoint]) -> int:
    """Return what a worker holds while it merges chunks of these tensors whenever the result is read."""
    return max(map(_buffer_bytes, tensors), default=0) + _virtual_bytes(models)


def _virtual_bytes(models: Sequence[Checkpoint]) -> int:
    """Return what a worker holds besides to read those of the models that are merged as they are read."""
    return sum(model.virtual.worker_bytes for model in models if model.virtual)


def _worker_bytes(plan: TensorPlan) -> int:
    """Return what one worker holds for this tensor: buffers, temporaries, statistics, matrices."""
    if plan.matrix or plan.module:
        return _chunk_bytes(plan) + _matrix_bytes(plan)
    return _chunk_bytes(plan)


def _chunk_bytes(plan: TensorPlan) -> int:
    """Return what one worker holds for a chunk of all models, and for what is collected from all chunks."""
    count, value = len(plan.inputs), _value_bytes(plan)
    collected = 4 * value * count * min(COLLECTED, plan.numel)  # its parts, joined, then partitioned
    return _buffer_bytes(plan) + collected


def _value_bytes(plan: TensorPlan) -> int:
    """Return the bytes of a value in the arithmetic; an adapter's factors give float32."""
    return 8 if any(member.entry.dtype == "F64" for member in plan.read) else 4


def _buffer_bytes(plan: TensorPlan) -> int:
    """Return what one worker holds for a chunk of all models."""
    count = len(plan.inputs)
    chunk = chunk_length(count, plan.width)
    elements, read = (min(n, max(1, plan.numel)) for n in (chunk, read_length(chunk)))
    itemsizes = [member.entry.itemsize for member in plan.read]
    buffers = sum(itemsizes) + 8  # for each file that is read, and for what is written
    folding = _value_bytes(plan) * (3 * count + 6)  # the updates, masked copies of them, and sums
    ranking = 16 * max(itemsizes, default=4) if plan.width > 1 else 0  # of the entries of each row
    return read * buffers + elements * (folding + ranking)


def _matrix_bytes(plan: TensorPlan) -> int:
    """Return what one worker holds for a tensor that is merged as a matrix: updates, bases, their products.

    Factors are few. Dense updates are held in float32 (up to `HELD` elements, else a block of rows), and
    are decomposed through float64 matrices of their short side, or of both. The maps of a fused matrix are
    merged one after another, from copies of their rows, and their factors become ones of the rank of all.
    """
    (m, n), method = plan.sides, plan.method
    assert method is not None  # what else would merge it
    dense = sum(i.dense for i in plan.inputs)
    rank = min(m, n, sum(i.rank for i in plan.inputs))
    factors = 8 * FACTORS * (m + n) * max(1, rank) * len(plan.matrices)
    if plan.by_rows:  # weights of rows, and updates that are held
        return factors + 8 * MOMENTS * m + (4 * dense * m * n if dense * m * n <= HELD else 0)
    if method.moments and plan.values["statistics"] != "identity":
        factors += 8 * MOMENTS * n**2
    if not dense and (method.matrix is not None or method.coefficients is not None):
        return factors
    held = dense * m * n if dense * m * n <= HELD else 0
    if plan.fused and held:
        held += dense * max(map(math.prod, plan.matrices))
    side = max(max(sides) if method.both_sides else min(sides) for sides in plan.matrices)
    if method.gate and method.gate.bound:  # factors of all updates, in float64 while orthogonalised
        factors += 8 * RESULTS * (m + n) * side
    return factors + 4 * (held + RESULTS * m * n) + 8 * SQUARES * side**2


def resident() -> int:
    """Return the process' resident memory now, in bytes."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return peak_resident()
