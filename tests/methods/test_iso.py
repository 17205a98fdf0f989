"""Iso-C and Iso-CTS against their formulas by plain SVDs, and what they must give where that is known."""

import pytest
import torch

from _updates import (
    FILLING,
    SHAPES,
    adapters,
    assert_close,
    fold,
    formula,
    full,
    matrix,
    merged,
    normal,
    rotation,
)
from submerge.algebra import Dense, LowRank


@pytest.mark.parametrize("shape", SHAPES + FILLING)
@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.5, -1.0, 2.0]])
@pytest.mark.parametrize("bank", [adapters, full])
def test_iso_c_is_its_formula(shape: tuple[int, int], weights: list[float], bank) -> None:
    updates = bank(shape)
    o = {"weight": weights, "scale": 1.5}
    assert_close(merged("iso_c", updates, **o), formula("iso_c", updates, **o), 1e-7)


@pytest.mark.parametrize("shape", SHAPES + FILLING)
@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.5, -1.0, 2.0]])
@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.8, 1.0])
@pytest.mark.parametrize("bank", [adapters, full])
def test_iso_cts_is_its_formula(shape: tuple[int, int], weights: list[float], fraction: float, bank) -> None:
    updates = bank(shape)
    o = {"weight": weights, "fraction": fraction, "scale": 1.5}
    assert_close(merged("iso_cts", updates, **o), formula("iso_cts", updates, **o), 1e-6)


@pytest.mark.parametrize("bank", [adapters, full])
def test_iso_c_keeps_the_nuclear_norm_and_evens_the_spectrum(bank) -> None:
    updates = bank((24, 30))
    before = torch.linalg.svdvals(sum(matrix(u) for u in updates))
    after = torch.linalg.svdvals(merged("iso_c", updates))
    assert_close(after.sum(), before.sum())
    rank = fold("iso_c", updates).figures["rank"]
    assert rank == min(24, 9 if bank is adapters else 24)
    assert_close(after[:rank], after[0].expand(rank))


def test_iso_c_of_an_isotropic_sum_is_that_sum() -> None:
    whole = 0.3 * rotation(1, 12)
    parts = [normal(t, 12, 12) for t in range(2)]
    updates = [*map(Dense, parts), Dense(whole - sum(parts))]
    assert_close(merged("iso_c", updates), whole, 1e-8)
    u, v = rotation(1, 24)[:, :6], rotation(2, 30)[:, :6]
    halves = [LowRank(2 * u[:, a : a + 3], v[:, a : a + 3].T) for a in (0, 3)]
    assert_close(merged("iso_c", halves), 2 * u @ v.T)


@pytest.mark.parametrize("bank", [adapters, full])
def test_iso_cts_with_all_directions_common_is_iso_c(bank) -> None:
    updates = bank((24, 30))
    assert_close(merged("iso_cts", updates, fraction=1.0), merged("iso_c", updates), 1e-8)


@pytest.mark.parametrize(
    ("count", "fraction", "common"), [(3, 0.8, 18), (2, 0.8, 20), (5, 0.5, 14), (4, 0.0, 0)]
)
def test_iso_cts_gives_every_model_as_many_directions(count: int, fraction: float, common: int) -> None:
    figures = fold("iso_cts", full((24, 30), count), fraction=fraction).figures
    assert (figures["common"], figures["rank"]) == (common, 24)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_iso_cts_invents_no_directions_for_updates_inside_the_common_ones(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    """One update is the sum's leading part: what is left of it outside is rounding, not a direction."""
    u, v = rotation(1, shape[0])[:, :12], rotation(2, shape[1])[:, :12]
    values = torch.linspace(20, 1, 12, dtype=torch.float64)
    total = u @ torch.diag(values) @ v.T
    inside = u[:, :4] @ torch.diag(values[:4]) @ v[:, :4].T
    updates = [Dense(inside.to(dtype)), Dense((total - inside).to(dtype))]
    figures = fold("iso_cts", updates, fraction=0.7).figures
    assert figures["common"] == 8
    assert figures["rank"] == 10, "the second has two of its own, the first has none"


@pytest.mark.parametrize("method", ["iso_c", "iso_cts"])
def test_updates_that_cancel_give_nothing(method: str) -> None:
    (update,) = adapters((24, 30), [3])
    assert merged(method, [update, update.scaled(-1)]).norm() < 1e-12
    assert merged(method, [update], weight=0.0).count_nonzero() == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_iso_c_of_transposed_updates_is_transposed(shape: tuple[int, int]) -> None:
    updates = full(shape)
    assert_close(merged("iso_c", [Dense(matrix(u).T) for u in updates]).T, merged("iso_c", updates), 1e-8)
