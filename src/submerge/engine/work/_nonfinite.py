"""NaN and Inf: whether values hold any, how many, and the error that says where.

Variances below zero count, too: a batch norm divides by their root, and gives NaN.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from submerge import kernels
from submerge.deferred import np, npt, torch
from submerge.errors import WorkError, counted
from submerge.kernels import array_type
from submerge.store import DTYPES

__all__ = [
    "IN_OUTPUT",
    "count_negative",
    "count_nonfinite",
    "is_variance",
    "nonfinite_error",
    "nonfinite_in_bytes",
]

SHOWN = 10
"""Tensors that an error names."""
IN_OUTPUT = "the output"
"""Whose NaN and Inf those are that were counted in what is written."""
MEND_INPUTS = "mend the inputs"
WIDEN_OUTPUT = (
    "the result is beyond the range of its type: choose dtype: bfloat16 or float32, or smaller weights; "
    "or an adapter holds them: mend it"
)
MEND_VARIANCES = (
    "updates have taken them below zero: choose smaller weights, or 0 for these alone, which keeps the "
    "base's (weight: [{filter: running_, value: 0}, {value: …}])"
)


def is_variance(name: str) -> bool:
    """Return whether a tensor holds the running variances of a batch norm, by its name."""
    return name.endswith(("running_var", "moving_variance"))


def count_negative(values: npt.NDArray[Any]) -> int:
    """Return how many floats are below zero, of an array of their type or of their bits."""
    bits = values.view(f"u{values.itemsize}")
    sign = bits.dtype.type(1 << (8 * values.itemsize - 1))
    return int(np.count_nonzero(bits > sign))


def count_nonfinite(values: torch.Tensor) -> int:
    """Return how many values are NaN or Inf."""
    return values.numel() - int(torch.isfinite(values).sum())


def nonfinite_in_bytes(view: memoryview, code: str) -> int:
    """Return how many of the values that lie in these bytes, of a safetensors dtype, are NaN or Inf."""
    if DTYPES[code].kind != "float":
        return 0
    return kernels.count_nonfinite(code, np.frombuffer(view, array_type(code)))


def nonfinite_error(nonfinite: Mapping[str, Mapping[str, int]]) -> WorkError:
    """Return the error that names the tensors with NaN or Inf, and whose they are."""
    shown = [
        f"  {name}: " + ", ".join(f"{count} in {where}" for where, count in counts.items())
        for name, counts in list(nonfinite.items())[:SHOWN]
    ]
    shown += [f"  … and {len(nonfinite) - SHOWN} tensors more"] if len(nonfinite) > SHOWN else []
    of_inputs = any(counts.keys() - {IN_OUTPUT} for counts in nonfinite.values())
    of_variances = not of_inputs and all(map(is_variance, nonfinite))
    what = "Negative variances" if of_variances else "NaN or Inf"
    hint = MEND_INPUTS if of_inputs else MEND_VARIANCES if of_variances else WIDEN_OUTPUT
    hint += ", or allow them with --allow-nonfinite (--resume keeps the work that is done)"
    return WorkError("\n".join([f"{what} in {counted(len(nonfinite), 'tensor')} — {hint}:", *shown]))
