"""How long a merge will compute, measured on made-up values just now."""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from submerge.engine._job import Job
from submerge.engine._plan import MergePlan
from submerge.engine._tensor import Input
from submerge.engine._workspace import Workspace
from submerge.store import MemorySource, TensorEntry

__all__ = ["compute_seconds"]

ELEMENTS = 1 << 20


class _Nowhere:
    def write(self, entry: TensorEntry, start: int, data: memoryview) -> None:
        pass


def compute_seconds(plan: MergePlan) -> float:
    """Return an estimate of the workers' time, in seconds, without what the disk adds.

    Folds a made-up tensor of a million elements with the options of the plan's largest tensor, and
    scales by elements and workers. Good to a factor of two on a quiet machine.
    """
    merged = [t for t in plan.tensors if t.treatment == "merge"]
    if not merged:
        return 0.0
    model = max(merged, key=lambda t: t.numel)
    side = model.shape[-1] if len(model.shape) > 1 else ELEMENTS
    shape = (max(1, ELEMENTS // side), side)
    entry = TensorEntry("trial", "BF16", shape, None, 0, 0)
    made_up = Input(0, entry)
    trial = replace(
        model,
        name="trial",
        shape=shape,
        inputs=(made_up,) * len(model.inputs),
        origin=made_up if model.origin else None,
    )
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(shape, generator=generator)
    sources = [
        MemorySource((base + 0.01 * torch.randn(shape, generator=generator)).to(torch.bfloat16))
        for _ in trial.read
    ]
    job = Job(0, trial, entry, sources, _Nowhere(), plan.recipe.seed)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        space = Workspace(torch.device("cpu"))
        _fold(job, space)  # the first time warms allocator and caches
        begun = time.perf_counter()
        _fold(job, space)
        spent = time.perf_counter() - begun
    finally:
        torch.set_num_threads(threads)
    return spent * sum(t.numel for t in merged) / trial.numel / plan.budget.workers


def _fold(job: Job, space: Workspace) -> None:
    tasks = job.begin()
    while tasks:
        for task in tasks:
            whole = job.deliver(task, job.work(task, space))
        tasks = job.proceed() if whole else []
