"""What is settled before the workers of a run begin: whether kernels are compiled, and torch is there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from submerge.engine.plan import TensorPlan
from submerge.kernels import compiling_for

__all__ = ["prepared"]


@contextmanager
def prepared(tensors: Sequence[TensorPlan]) -> Iterator[None]:
    """Choose by the size of these tensors how kernels run inside; import torch where one of them needs it.

    Workers that are forked have all that was imported before. And torch's own threads can only be switched
    off where torch is there.
    """
    if any(map(_uses_torch, tensors)):
        import torch  # noqa: F401
    with compiling_for(sum(tensor.numel for tensor in tensors)):
        yield


def _uses_torch(tensor: TensorPlan) -> bool:
    """Return whether a tensor is merged as a matrix, changed by an adapter, or merged by another package."""
    if tensor.matrix or tensor.module is not None or any(member.patch for member in tensor.members):
        return True
    return tensor.method is not None and not tensor.method.plan.__module__.startswith("submerge.")
