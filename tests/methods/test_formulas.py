"""Every method agrees with its formula, written out densely in float64."""

import pytest
import torch

from _dense import FORMULAS, MATRICES, expected
from _support import CASES, MATRIX_CASES, SHAPES, Case, family
from submerge.methods import METHODS

TOLERANCE = {
    torch.float64: 1e-11,
    torch.float32: 3e-6,
    torch.float16: 2.0**-10,
    torch.bfloat16: 2.0**-7,
}
"""Of the largest weight in a tensor: a few roundings in float32, or one to the output's 16 bits."""


def test_every_method_has_a_formula_and_a_case() -> None:
    chunked = {name for name, method in METHODS.items() if method.matrix is None} - {"cat"}
    whole = set(METHODS) - chunked
    assert {case.method for case in CASES} == chunked, "CASES of tests/_support.py"
    assert set(FORMULAS) == chunked, "FORMULAS of tests/_dense.py"
    assert {case.method for case in MATRIX_CASES} == whole, "MATRIX_CASES of tests/_support.py"
    assert set(MATRICES) == whole, "FORMULAS of tests/_matrices.py"


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("case", CASES + MATRIX_CASES, ids=str)
def test_method_is_its_formula(case: Case, dtype: torch.dtype) -> None:
    base, models = family(case.models, dtype=dtype)
    merged, wanted = case.merge(base, models), expected(case, base, models)
    assert list(merged) == list(base)
    share = TOLERANCE[dtype]
    if METHODS[case.method].gate:  # a bank, whose factors are float32
        share = max(share, TOLERANCE[torch.float32])
    for key, value in merged.items():
        assert (value.dtype, value.shape) == (dtype, SHAPES[key])
        scale = wanted[key].abs().max().item() if value.numel() else 1.0
        torch.testing.assert_close(value.double(), wanted[key], rtol=0, atol=share * max(1.0, scale), msg=key)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", CASES, ids=str)
def test_method_is_its_formula_for_updates_as_large_as_weights(case: Case, seed: int) -> None:
    base, models = family(case.models, {"w": (15, 8)}, seed=100 + 10 * seed, size=3.0)
    merged, wanted = case.merge(base, models, seed=seed), expected(case, base, models, seed)
    torch.testing.assert_close(merged["w"].double(), wanted["w"], rtol=1e-5, atol=3e-5)
