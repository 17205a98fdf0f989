"""The element types of safetensors files: width, kind, and the torch type that holds them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeAlias

from submerge.deferred import torch

__all__ = ["DTYPES", "DType", "Kind", "dtype_named", "torch_dtype"]

Kind: TypeAlias = Literal["float", "integer", "bool", "quantised", "complex"]


@dataclass(frozen=True, slots=True)
class DType:
    """One element type: its safetensors code, its name in torch ("": torch has none), bits and kind."""

    code: str
    name: str
    bits: int
    kind: Kind

    @property
    def torch(self) -> torch.dtype | None:
        """The torch type, or None where torch, or the torch that is installed, has none."""
        dtype = getattr(torch, self.name, None) if self.name else None
        return dtype if isinstance(dtype, torch.dtype) else None

    @property
    def itemsize(self) -> int:
        """Bytes of one element; 0 for the types that are narrower than a byte or straddle bytes."""
        return self.bits // 8 if self.bits % 8 == 0 else 0

    @property
    def supported(self) -> bool:
        """True for the types that Submerge reads and writes: floats, integers, booleans."""
        return self.kind in ("float", "integer", "bool")

    def is_wider(self, other: DType) -> bool:
        """Return whether both are floats, and this has more bits: it holds all values of the other."""
        return self.kind == other.kind == "float" and self.bits > other.bits

    def nbytes(self, shape: tuple[int, ...]) -> int | None:
        """Bytes of a tensor of `shape`, or None if its bits do not fill whole bytes."""
        bits = math.prod(shape) * self.bits
        return bits // 8 if bits % 8 == 0 else None


_ROWS = (
    DType("BOOL", "bool", 8, "bool"),
    DType("U8", "uint8", 8, "integer"),
    DType("I8", "int8", 8, "integer"),
    DType("I16", "int16", 16, "integer"),
    DType("U16", "uint16", 16, "integer"),
    DType("I32", "int32", 32, "integer"),
    DType("U32", "uint32", 32, "integer"),
    DType("I64", "int64", 64, "integer"),
    DType("U64", "uint64", 64, "integer"),
    DType("F16", "float16", 16, "float"),
    DType("BF16", "bfloat16", 16, "float"),
    DType("F32", "float32", 32, "float"),
    DType("F64", "float64", 64, "float"),
    DType("F8_E4M3", "float8_e4m3fn", 8, "quantised"),
    DType("F8_E5M2", "float8_e5m2", 8, "quantised"),
    DType("F8_E4M3FNUZ", "float8_e4m3fnuz", 8, "quantised"),
    DType("F8_E5M2FNUZ", "float8_e5m2fnuz", 8, "quantised"),
    DType("F8_E8M0", "float8_e8m0fnu", 8, "quantised"),
    DType("F6_E2M3", "", 6, "quantised"),
    DType("F6_E3M2", "", 6, "quantised"),
    DType("F4", "", 4, "quantised"),
    DType("C64", "complex64", 64, "complex"),
)

DTYPES: Mapping[str, DType] = MappingProxyType({row.code: row for row in _ROWS})

_ALIASES = {
    "half": "F16",
    "fp16": "F16",
    "bf16": "BF16",
    "float": "F32",
    "fp32": "F32",
    "double": "F64",
    "fp64": "F64",
}
_NAMES = (
    {row.code.lower(): row.code for row in _ROWS}
    | {row.name: row.code for row in _ROWS if row.name}
    | _ALIASES
)


def dtype_named(name: str | torch.dtype) -> str | None:
    """Return the safetensors code of a type by any of its usual names, or None if there is none.

    `"bfloat16"`, `"BF16"`, `"torch.bfloat16"` and `torch.bfloat16` all give `"BF16"`.
    """
    return _NAMES.get(str(name).strip().lower().removeprefix("torch."))


def torch_dtype(code: str) -> torch.dtype:
    """Return the torch type of a safetensors dtype; raise `ValueError` for one that torch lacks."""
    dtype = DTYPES[code].torch
    if dtype is None:
        raise ValueError(f"{code} has no torch type")
    return dtype
