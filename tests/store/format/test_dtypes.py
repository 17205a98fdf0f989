"""The names of types."""

from __future__ import annotations

import pytest
import torch

from submerge.store import DTYPES, dtype_named


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("bfloat16", "BF16"),
        ("BF16", "BF16"),
        ("torch.bfloat16", "BF16"),
        (torch.bfloat16, "BF16"),
        ("fp16", "F16"),
        ("float16", "F16"),
        ("half", "F16"),
        ("float32", "F32"),
        ("float8_e4m3fn", "F8_E4M3"),
        ("bool", "BOOL"),
        ("nonsense", None),
    ],
)
def test_names_of_types(name: str, code: str | None) -> None:
    assert dtype_named(name) == code


def test_the_table_of_types_agrees_with_torch() -> None:
    for code, dtype in DTYPES.items():
        assert dtype.code == code
        if dtype.torch is not None:
            assert torch.empty(0, dtype=dtype.torch).element_size() == dtype.itemsize
    assert DTYPES["F4"].nbytes((3,)) is None
    assert DTYPES["F6_E2M3"].nbytes((4,)) == 3
    assert not DTYPES["F8_E4M3"].supported
