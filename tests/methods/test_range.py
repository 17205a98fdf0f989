"""Updates of any size that float32 holds merge alike: their squares may be beyond it."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from _support import CASES, MATRIX_CASES, Case, State, family
from submerge.algebra import Chunk, Gram, slerp_coefficients
from submerge.engine import merge_state_dicts
from submerge.errors import WorkError

SHAPES = {"matrix": (24, 17), "norm": (37,), "conv": (4, 3, 2, 5)}
PATHS = {"numpy": 1 << 62, "compiled": 0}
"""The elements from which on a merge is compiled."""

BY_THRESHOLD = re.compile(r"nearswap|arcee|ram")
"""Methods that compare updates with numbers of the recipe, or take exponentials of weights."""
FLOORED = re.compile(
    r"slerp|nuslerp|karcher|multislerp|model_stock(-rows)?$|sce(-half)?$|(ties-rescale|dare_|della)(?!.*(paper|bare))"
)
"""Methods that take a length below a floor, mergekit's or an option, for none."""

LARGE = [c for c in (*CASES, *MATRIX_CASES) if not BY_THRESHOLD.match(c.name)]
SMALL = [c for c in LARGE if not FLOORED.match(c.name)]


def scaled(tensors: State, exponent: int) -> State:
    return {name: (x.double() * 2.0**exponent).float() for name, x in tensors.items()}


def check(case: Case, exponent: int) -> None:
    """Check that 2^exponent times the models are merged to 2^exponent times what they are merged to."""
    base, models = family(case.models, SHAPES)
    wanted = case.merge(base, models)
    found = case.merge(scaled(base, exponent), [scaled(model, exponent) for model in models])
    for name, x in wanted.items():
        # eps of Multi-SLERP, and what is left of it at sizes near 1
        atol = 1e-4 if "slerp" in case.name else 1e-5
        assert (found[name].double() / 2.0**exponent - x.double()).abs().max() < atol, name


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_large_updates(case: Case, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("submerge.kernels._kernel.WORTHWHILE", PATHS[path])
    for exponent in (66, 90, 118):  # where some squares overflow, all, and sums of magnitudes
        check(case, exponent)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_small_updates(case: Case, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("submerge.kernels._kernel.WORTHWHILE", PATHS[path])
    for exponent in (-66, -80, -100):
        check(case, exponent)


@pytest.mark.parametrize("select_topk", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("exponent", [-90, 90])
def test_sce_selects_in_large_tensors(
    select_topk: float, exponent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search over variances that are no numbers comes to its end, and is made anew."""
    monkeypatch.setattr("submerge.algebra._select.COLLECT_ALL", 1000)
    monkeypatch.setattr("submerge.algebra._select.PARTITION_MOST", 100)
    base, models = family(3, {"w": (100, 40), "u": (20, 30)})
    options = {"method": "sce", "variant": "paper", "select_topk": select_topk}
    wanted = merge_state_dicts(models, base=base, **options)
    large = [scaled(model, exponent) for model in models]
    found = merge_state_dicts(large, base=scaled(base, exponent), **options)
    for name, x in wanted.items():
        changed = x != base[name]
        assert changed.float().mean().item() == pytest.approx(select_topk, abs=0.01)
        assert ((found[name] != scaled(base, exponent)[name]) == changed).float().mean() > 0.999
        assert (found[name].double() / 2.0**exponent - x.double()).abs().mean() < 1e-4


def test_one_large_update_is_not_taken_for_none() -> None:
    """A weight of 3e19 among ones of 1 had SCE return the base."""
    base = {"w": torch.zeros(8, 8)}
    first, second = (torch.full((8, 8), x) for x in (1.0, 2.0))
    first[0, 0] = 3e19
    merged = merge_state_dicts(
        [{"w": first}, {"w": second}], base=base, method="sce", variant="paper", select_topk=0.5
    )
    assert merged["w"][0, 0] == pytest.approx(3e19)


@pytest.mark.parametrize("method", ["karcher", "slerp", "nuslerp", "multislerp", "model_stock", "sce"])
def test_what_float64_cannot_square_is_refused(method: str) -> None:
    options = {"slerp": {"t": 0.5}, "nuslerp": {"weight": [1.0, 1.0]}, "multislerp": {"weight": [1.0, 1.0]}}
    base, first, second = ({"w": torch.full((6, 4), x, dtype=torch.float64)} for x in (0.0, 1e200, 1e200))
    second["w"][0] *= -1
    models = [second] if method == "slerp" else [first, second]
    own = first if method == "slerp" else base
    with pytest.raises(WorkError, match="NaN or Inf in 1 tensor"):
        merge_state_dicts(models, base=own, method=method, **options.get(method, {}))


def test_slerp_of_no_number_is_no_number() -> None:
    assert np.isnan(slerp_coefficients(float("nan"), 0.5, 0.9995)).all()


@pytest.mark.parametrize("size", [1e-44, 1e-30, 1e-20, 1.0, 1e18, 1e25, 3e38])
def test_inner_products_are_exact_at_any_size(size: float) -> None:
    random = np.random.default_rng(0)
    rows = (random.uniform(0.5, 1, (3, 5000)) * size).astype(np.float32)
    rows[2] = 0
    gram = Gram()
    found = gram.combine([gram.observe(Chunk(0, rows, width=1, finite=True, keys=[0, 1, 2]))])
    np.testing.assert_allclose(found, rows.astype(np.float64) @ rows.astype(np.float64).T, rtol=1e-5)
