"""NaN and Inf: whether values hold any, how many, and the error that says where."""

from __future__ import annotations

import math
from collections.abc import Mapping

from submerge.deferred import torch
from submerge.errors import WorkError

__all__ = ["count_nonfinite", "is_finite", "nonfinite_error", "nonfinite_in_bytes"]

SHOWN = 10
"""Tensors that an error names."""


def is_finite(values: torch.Tensor) -> bool:
    """Return whether no value is NaN or Inf: a finite sum proves it; only otherwise each is looked at."""
    total = values.sum(dtype=torch.float32 if values.dtype == torch.float16 else None)
    return math.isfinite(total.item()) or count_nonfinite(values) == 0


def count_nonfinite(values: torch.Tensor) -> int:
    """Return how many values are NaN or Inf."""
    return values.numel() - int(torch.isfinite(values).sum())


def nonfinite_in_bytes(view: memoryview, dtype: torch.dtype) -> int:
    """Return how many of the values that lie in these bytes are NaN or Inf."""
    values = torch.frombuffer(view, dtype=dtype)
    # a sum that is finite, as nearly all are, has no part that is not: it spares a pass that counts
    if not dtype.is_floating_point or math.isfinite(values.sum(dtype=torch.float32).item()):
        return 0
    return count_nonfinite(values)


def nonfinite_error(nonfinite: Mapping[str, Mapping[str, int]]) -> WorkError:
    """Return the error that names the tensors with NaN or Inf, and whose they are."""
    shown = [
        f"  {name}: " + ", ".join(f"{count} in {where}" for where, count in counts.items())
        for name, counts in list(nonfinite.items())[:SHOWN]
    ]
    shown += [f"  … and {len(nonfinite) - SHOWN} tensors more"] if len(nonfinite) > SHOWN else []
    tensors = "1 tensor" if len(nonfinite) == 1 else f"{len(nonfinite)} tensors"
    hint = "mend the inputs, or allow them with --allow-nonfinite (--resume keeps the work that is done)"
    return WorkError("\n".join([f"NaN or Inf in {tensors} — {hint}:", *shown]))
