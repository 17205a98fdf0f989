"""Shapes of the factors B and A: how many experts they are of, and whether they fit each other."""

from __future__ import annotations

from submerge.store.format import TensorEntry

__all__ = ["expert_count", "shape_fault"]


def expert_count(left: TensorEntry, right: TensorEntry, rank: int) -> int:
    """Return how many experts the factors are of, or 0 for a matrix."""
    if len(left.shape) != 2 or len(right.shape) != 2 or right.shape[0] % rank or right.shape[0] == rank:
        return 0
    return right.shape[0] // rank


def shape_fault(
    left: TensorEntry, right: TensorEntry, *, rank: int, experts: int, embedding: bool
) -> str | None:
    """Return what is wrong with the shapes of B and A, or None."""
    shapes = f"B {left.shape} and A {right.shape}"
    if 0 in (*left.shape, *right.shape):
        return f"has empty factors, {shapes}: it was saved from a sharded training without gathering"
    if len(left.shape) != len(right.shape) or len(left.shape) < 2 or (embedding and len(left.shape) != 2):
        return f"has factors of impossible shapes, {shapes}"
    if any(size != 1 for size in left.shape[2:]):
        return f"has a B with a kernel of its own, {shapes}"
    if left.shape[1] != right.shape[0]:
        grouped = len(left.shape) > 2 and right.shape[0] % left.shape[1] == 0
        why = " (a convolution in groups, which PEFT cannot merge either)" if grouped else ""
        return f"has factors that do not fit each other, {shapes}{why}"
    if right.shape[0] != rank * max(1, experts):
        return f"has rank {right.shape[0]}, but the configuration says {rank}"
    return None
