"""Conversions between files' values and rows: the bits of numpy's expressions, and of torch's own casts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from submerge.kernels import Kernel, array_type, count_nonfinite, is_finite, load, store
from submerge.kernels._finite import greatest
from submerge.kernels._load import subtract_bf16, widen_bf16, widen_f16
from submerge.kernels._store import add_bf16, round_bf16, round_f16

CODES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
EVERY_16_BITS = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)

# NaN with either sign and a payload, ∞, ±0, subnormal numbers, and what lies half-way between two of 16 bits
SPECIAL = (
    0x7FC00000, 0xFF800001, 0x7F800000, 0xFF800000, 0, 0x80000000, 1, 0x807FFFFF, 0x00008000, 0x00018000,
    0x3F808000, 0x3F818000, 0x3F801000, 0x3F803000, 0x33000000, 0x33000001, 0x387FE000, 0x387FF000,
    0x477FEFFF, 0x477FF000, 0x7F7F7FFF, 0x7F7F8000,
)  # fmt: skip
bits_of_rows = st.lists(st.one_of(st.integers(0, 2**32 - 1), st.sampled_from(SPECIAL)), max_size=70)


def compiled(kernel: Kernel) -> Callable[..., Any]:
    """Return the compiled loop, also where a small merge before this test was by numpy."""
    return kernel.compiled()


def both(kernel: Kernel, values: np.ndarray, dtype: Any) -> list[np.ndarray]:
    """Return what the loop and the reference make of the values, as bits."""
    results, finite = [], []
    for function in (compiled(kernel), kernel.reference):
        out = np.empty(values.size, dtype)
        with np.errstate(all="ignore"):
            finite.append(bool(function(values, out)))
        results.append(out)
    assert finite[0] is finite[1]
    return results


def same_values(one: np.ndarray, other: np.ndarray) -> bool:
    """Return whether the bits are the same, but for those of NaN."""
    nan = np.isnan(one)
    unsigned = f"u{one.itemsize}"
    return bool((nan == np.isnan(other)).all() and (one.view(unsigned) == other.view(unsigned))[~nan].all())


def tensor(code: str, values: np.ndarray) -> torch.Tensor:
    """Return the tensor of the same bytes."""
    return torch.from_numpy(values.copy()).view(CODES[code])


@pytest.mark.parametrize("length", [0, 1, 7, 1 << 16])
@pytest.mark.parametrize(("code", "kernel"), [("BF16", widen_bf16), ("F16", widen_f16)])
def test_every_value_of_16_bits_is_widened(code: str, kernel: Kernel, length: int) -> None:
    raw = EVERY_16_BITS[EVERY_16_BITS.size - length :]
    loop, reference = both(kernel, raw, np.float32)
    assert same_values(loop, reference)
    assert same_values(loop, tensor(code, raw).float().numpy())


@given(bits=bits_of_rows)
@pytest.mark.parametrize(("code", "kernel"), [("BF16", round_bf16), ("F16", round_f16)])
def test_rows_are_rounded_to_16_bits(code: str, kernel: Kernel, bits: list[int]) -> None:
    row = np.array(bits, np.uint32).view(np.float32)
    loop, reference = both(kernel, row, np.uint16)
    assert loop.tolist() == reference.tolist()
    there = ~np.isnan(row)
    cast = torch.from_numpy(row.copy()).to(CODES[code]).view(torch.int16).numpy().view(np.uint16)
    assert loop[there].tolist() == cast[there].tolist()
    assert set(loop[~there].tolist()) <= {0x7FC0 if code == "BF16" else 0x7E00}


@given(bits=bits_of_rows)
@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_is_loaded_and_stored_is_what_torch_casts(code: str, dtype: Any, bits: list[int]) -> None:
    if code == "F64" and dtype == np.float32:
        return  # an input of float64 makes all rows float64
    with np.errstate(invalid="ignore"):  # of a signalling NaN
        row = np.array(bits, np.uint32).view(np.float32).astype(dtype)
    before, out = row.copy(), np.empty(row.size, array_type(code))
    finite = store(code, row, out)
    assert row.tobytes() == before.tobytes()
    cast = torch.from_numpy(row).to(CODES[code])
    assert same_values(tensor(code, out).double().numpy(), cast.double().numpy())
    assert finite == is_finite(code, out) == bool(torch.isfinite(cast).all())
    assert count_nonfinite(code, out) == int((~torch.isfinite(cast)).sum())
    loaded = np.empty(row.size, dtype)
    assert load(code, out, loaded) is finite
    assert same_values(loaded, cast.to(torch.from_numpy(row).dtype).numpy())


@given(bits=bits_of_rows, others=bits_of_rows)
def test_the_origin_is_subtracted_and_added_in_the_same_loop(bits: list[int], others: list[int]) -> None:
    n = min(len(bits), len(others))
    row, origin = (np.array(given[:n], np.uint32).view(np.float32) for given in (bits, others))
    raw = (row.view(np.uint32) >> 16).astype(np.uint16)
    updates, sums = [], []
    for subtract, add in (
        (f(subtract_bf16), f(add_bf16)) for f in (compiled, lambda kernel: kernel.reference)
    ):
        update, rounded = np.empty(n, np.float32), np.empty(n, np.uint16)
        with np.errstate(all="ignore"):
            assert subtract(raw, origin, update) == is_finite("BF16", raw)
            assert add(row, origin, rounded) == is_finite("BF16", rounded)
        updates.append(update)
        sums.append(rounded.tolist())
    assert same_values(*updates)
    assert sums[0] == sums[1]


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_is_loaded_less_an_origin_is_stored_with_it(code: str, dtype: Any) -> None:
    if code == "F64" and dtype == np.float32:
        return
    origin = np.array([0.5, -3.0, 0.0, np.inf], dtype)
    values, update, out = (np.empty(4, kind) for kind in (array_type(code), dtype, array_type(code)))
    store(code, np.array([1.5, -2.0, -0.0, 1.0], dtype), values)
    load(code, values, update, origin)
    assert update.tolist() == [1.0, 1.0, 0.0, -np.inf]
    assert store(code, update, out, origin) is False
    assert tensor(code, out)[:3].tolist() == [1.5, -2.0, 0.0]
    assert tensor(code, out)[3].isnan()


@pytest.mark.parametrize("code", CODES)
def test_all_nan_are_stored_as_one(code: str) -> None:
    row = np.array([0x7FC00000, 0xFFC00000, 0x7FFFFFFF, 0xFF800001], np.uint32).view(np.float32)
    out = np.empty(row.size, array_type(code))
    assert not store(code, row, out)
    assert len({value.tobytes() for value in out}) == 1
    assert not np.signbit(tensor(code, out).double().numpy()).any()


@pytest.mark.parametrize("code", CODES)
def test_doubles_go_through_singles_to_16_bits(code: str) -> None:
    """1 + 2^-8 + 2^-40 lies above the middle between two numbers of bfloat16, and in it as a float32."""
    row = np.array([1 + 2.0**-8 + 2.0**-40, 1 + 2.0**-11 + 2.0**-40, 1e300, -1e300, 5e-324])
    out = np.empty(row.size, array_type(code))
    assert store(code, row, out) == (code == "F64")
    assert tensor(code, out).tolist() == torch.from_numpy(row).to(CODES[code]).tolist()


@given(
    bits=st.lists(st.integers(0, 2**64 - 1), max_size=70),
    width=st.sampled_from([16, 32, 64]),
    mask=st.integers(0, 2**64 - 1),
)
def test_the_greatest_of_masked_bits(bits: list[int], width: int, mask: int) -> None:
    values = np.array(bits, np.uint64).astype(f"u{width // 8}")
    of_type = values.dtype.type(mask & ((1 << width) - 1))
    loop, reference = (function(values, of_type) for function in (compiled(greatest), greatest.reference))
    assert int(loop) == int(reference) == max((int(v) & int(of_type) for v in values), default=0)
