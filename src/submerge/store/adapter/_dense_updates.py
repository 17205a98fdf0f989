"""From the tensors that LyCORIS saves of one module to updates that are no product of two factors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from submerge.store.adapter._composed import Composed, operand
from submerge.store.adapter._parts import Add, Part
from submerge.store.format import TensorEntry

__all__ = ["dense_updates"]

_DIFFERENCES = {"diff": "weight", "w_norm": "weight", "diff_b": "bias", "b_norm": "bias"}
_PRODUCTS: tuple[tuple[Literal["LoHa", "LoKr"], str, str, str, str], ...] = (
    ("LoHa", "hada_w1", "hada_t1", "hada_w2", "hada_t2"),
    ("LoKr", "lokr_w1", "lokr_t1", "lokr_w2", "lokr_t2"),
)
"""The product, and what LyCORIS calls its matrices and their cores."""


def dense_updates(entries: Mapping[str, TensorEntry]) -> dict[str, Part | None]:
    """Return the updates of a module's `weight` and `bias`, of its tensors by LyCORIS' names.

    None stands for tensors that do not fit each other.
    """
    parts: dict[str, Part | None] = {}
    for role, leaf in _DIFFERENCES.items():
        if role in entries:
            parts[leaf] = None if leaf in parts else Add(entries[role], 1.0)
    for product, first, first_core, second, second_core in _PRODUCTS:
        if not any(role.startswith(first[:-1]) for role in entries):
            continue
        one, other = operand(entries, first, first_core), operand(entries, second, second_core)
        unlike = product == "LoHa" and one and other and one.shape != other.shape
        if one is None or other is None or unlike or "weight" in parts:
            parts["weight"] = None
        else:
            parts["weight"] = Composed(product, one, other)
    return parts
