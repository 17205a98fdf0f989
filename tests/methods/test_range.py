"""Updates of any size that float32 holds merge alike: their squares may be beyond it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pytest
import torch

from _support import CASES, MATRIX_CASES, Case, State, family
from submerge.algebra import Chunk, Gram, lengths, slerp_coefficients
from submerge.engine import merge_state_dicts
from submerge.engine.work._adapter_edit import Dora
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


@pytest.mark.parametrize("size", [1e-44, 1e-30, 1e-20, 1.0, 1e18, 1e25, 1e36])
def test_lengths_are_exact_at_any_size(size: float) -> None:
    x = (torch.rand(5, 300, generator=torch.Generator().manual_seed(0)).double() + 0.5) * size
    x = x.float()
    for dim in (0, 1, [0, 1]):
        wanted = torch.linalg.vector_norm(x.double(), dim=dim, keepdim=True)
        found = lengths(x, dim, keepdim=True).double()
        assert found.shape == wanted.shape
        assert torch.allclose(found, wanted, rtol=1e-5, atol=2e-45)


def test_a_length_beyond_its_type_is_no_number() -> None:
    x = torch.tensor([[3e38, 3e38], [1.0, 0.0]])
    assert lengths(x, 1).isnan().tolist() == [True, False]
    wide = torch.tensor([[1e200, 0.0], [1.0, 0.0]], dtype=torch.float64)
    assert lengths(wide, 1).isnan().tolist() == [True, False]


@dataclass
class Factors:
    """A pair of factors whose product is zero, and a magnitude."""

    magnitude: torch.Tensor
    width: int = 8

    def rows(self, start: int, stop: int) -> torch.Tensor:
        return torch.zeros(stop - start, self.width)


@pytest.mark.parametrize("exponent", [-90, 0, 66, 100])
def test_dora_of_weights_of_any_size(exponent: int) -> None:
    weight = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)) * 2.0**exponent
    values, read = weight.flatten().clone(), lambda start, stop: weight.flatten()[start:stop].clone()
    Dora(cast(Any, Factors(torch.arange(1.0, 7.0)))).apply_(0, values, read)
    assert torch.allclose(values.view(6, 8).norm(dim=1), torch.arange(1.0, 7.0))


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


VOTES: dict[str, dict[str, Any]] = {
    "ties": {"weight": 1.0, "density": 1.0},
    "ties, paper": {"weight": 0.1, "density": 1.0, "variant": "paper"},
    "dare_ties": {"weight": 1.0, "lambda": 0.1, "density": 1.0, "rescale": False},
    "breadcrumbs_ties": {"weight": 1.0, "lambda": 0.1, "density": 1.0, "gamma": 0.0},
    "sce": {"variant": "paper"},
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("count", [5, 11])
@pytest.mark.parametrize("case", VOTES)
def test_a_vote_on_values_whose_sums_overflow(
    case: str, count: int, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was left of a partial sum, infinity, elected the sign of the models that came first."""
    monkeypatch.setattr("submerge.kernels._kernel.WORTHWHILE", PATHS[path])
    updates = torch.full((count, 4), -3e38)
    updates[: count // 2] *= -1  # fewer are positive, and they come first
    updates[:, 2] *= -1
    updates[:, 3] *= 1e-38
    method, options = case.partition(",")[0], VOTES[case]

    def merged(size: float) -> torch.Tensor:
        states = [{"w": (row.double() * size).view(2, 2)} for row in updates]
        dtype = torch.float64 if size < 1 else torch.float32
        states = [{name: x.to(dtype) for name, x in state.items()} for state in states]
        base = {"w": torch.zeros(2, 2, dtype=dtype)}
        return merge_state_dicts(states, base=base, method=method, **options)["w"].double() / size

    wanted = merged(2.0**-20)
    assert wanted.sign().flatten().tolist() == [-1, -1, 1, -1]
    torch.testing.assert_close(merged(1.0), wanted, rtol=1e-6, atol=0)


def test_a_sum_that_no_type_holds_is_refused() -> None:
    states = [{"w": torch.full((4,), 3e38)}] * 2
    with pytest.raises(WorkError, match="NaN or Inf in 1 tensor"):
        merge_state_dicts(
            states, base={"w": torch.zeros(4)}, method="ties", weight=1.0, density=1.0, normalize=False
        )
