"""What is settled before the workers of a run begin: whether kernels are compiled, and torch is there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from submerge.engine.plan import TensorPlan, computed_elements
from submerge.kernels import compiling_for

__all__ = ["prepared"]


@contextmanager
def prepared(tensors: Sequence[TensorPlan]) -> Iterator[None]:
    """Choose by the size of these tensors how kernels run inside; import torch where one of them needs it.

    Workers that are forked have all that was imported before. And torch's own threads can only be switched
    off where torch is there.
    """
    if any(tensor.uses_torch for tensor in tensors):
        import torch  # noqa: F401
    with compiling_for(computed_elements(tensors)):
        yield
