"""The files of weights that a merge writes."""

from __future__ import annotations

from collections.abc import Sequence

from submerge.engine.plan.inputs import Settings
from submerge.engine.plan.tensors._tensor import TensorPlan
from submerge.store import Checkpoint, Shard, plan_shards

__all__ = ["weight_files"]

NAMED = ("diffusion_pytorch_model", "open_clip_model")
"""The only names under which Diffusers and OpenCLIP look for weights."""


def weight_files(
    reference: Checkpoint, tensors: Sequence[TensorPlan], settings: Settings
) -> tuple[Shard, ...]:
    """Return the files of weights that are written, under the name that their reader looks for."""
    files = {file.rpartition("/")[2] for file in reference.shards.values()}
    stem = next((name for name in NAMED if any(file.startswith(name) for file in files)), "model")
    laid_out = [(tensor.name, tensor.dtype, tensor.shape) for tensor in tensors]
    return tuple(plan_shards(laid_out, settings.shard_size, stem=stem))
