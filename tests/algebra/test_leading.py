"""Leading eigenvectors are those of the summed Gram matrix, however they are computed."""

from typing import Any

import pytest
import torch

from _eigen import decaying, projector, summed, top
from _updates import FILLING, SHAPES, adapters, assert_close, densely, full, rotation, streamed
from submerge.algebra import Dense, LowRank, Zero, leading
from submerge.algebra import _leading as module


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What each iteration returned: None where it gave way to a decomposition."""
    returned: list[Any] = []
    original = module.krylov_eigenpairs

    def watched(*args: Any) -> Any:
        returned.append(original(*args))
        return returned[-1]

    monkeypatch.setattr(module, "krylov_eigenpairs", watched)
    return returned


@pytest.mark.parametrize("shape", SHAPES + FILLING)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("form", [list, densely, streamed])
def test_leading_eigenvectors(shape: tuple[int, int], side: str, form: Any) -> None:
    updates = form(adapters(shape))
    gram = summed(updates, side)
    for k in (1, 3, 5):
        values, vectors = top(gram, k + 1)
        found = leading(updates, side, k)
        assert found.vectors.shape[1] == min(k, len(gram))
        assert_close(projector(found.vectors), projector(vectors[:, :k]), 1e-9)
        assert_close(found.values[:k], values[:k], 1e-11)
        assert found.trace == pytest.approx(float(gram.trace()))
        assert found.kept(k) == pytest.approx(float(values[:k].sum() / gram.trace()))


@pytest.mark.parametrize("side", ["left", "right"])
def test_no_more_than_the_numerical_rank(side: str) -> None:
    updates = densely(adapters((24, 30)))
    assert leading(updates, side, 99).vectors.shape[1] == 9
    assert leading([Zero((24, 30))], side, 3).vectors.shape[1] == 0
    found = leading([Dense(torch.zeros(4, 5))] * 2, side, 3)
    assert (found.vectors.shape[1], found.kept(3), found.enough(0.9)) == (0, 1.0, 0)


def test_enough_and_tied() -> None:
    u, values = rotation(1, 8), [4.0, 2, 2, 2, 1, 1, 1, 1]
    found = leading([LowRank(u * torch.tensor(values, dtype=torch.float64).sqrt(), u.T)], "left", 8)
    assert_close(found.values, torch.tensor(values, dtype=torch.float64))
    assert [found.enough(x / 14) for x in (1, 4, 4.1, 6, 10, 14)] == [1, 1, 2, 2, 4, 8]
    assert [found.tied(k) for k in (0, 1, 2, 3, 4, 5, 8)] == [False, False, True, True, False, True, False]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("form", [densely, streamed])
def test_iteration_finds_what_decays(side: str, form: Any, calls: list[Any]) -> None:
    updates = form([decaying((600, 640), 1.5, 10 * t) for t in range(2)])
    found = leading(updates, side, 12)
    assert calls[-1] is not None
    values, vectors = top(summed(updates, side), 13)
    assert_close(projector(found.vectors), projector(vectors[:, :12]), 1e-6)
    assert_close(found.values, values, 1e-9)
    assert not found.tied(12)
    again = leading(updates, side, 12)
    assert torch.equal(again.vectors, found.vectors), "the start is drawn from a fixed seed"


@pytest.mark.parametrize("side", ["left", "right"])
def test_iteration_finds_what_is_of_low_rank(side: str, calls: list[Any]) -> None:
    updates = densely(adapters((600, 640), [4, 3]))
    found = leading(updates, side, 20)
    assert calls[-1] is not None
    assert found.vectors.shape[1] == 7
    assert_close(projector(found.vectors), projector(top(summed(updates, side), 7)[1]), 1e-9)


@pytest.mark.parametrize("side", ["left", "right"])
def test_flat_spectra_are_decomposed_whole(side: str, calls: list[Any]) -> None:
    updates = full((720, 730), 2)
    found = leading(updates, side, 12)
    assert calls == [None], "it does not settle, and says so"
    values, vectors = top(summed(updates, side), 13)
    assert_close(projector(found.vectors), projector(vectors[:, :12]), 1e-8)
    assert_close(found.values, values, 1e-11)


def test_many_directions_are_not_worth_an_iteration(calls: list[Any]) -> None:
    leading(full((600, 520), 2), "left", 200)
    assert calls == []


def test_energy_needs_all_values(calls: list[Any]) -> None:
    leading([decaying((600, 520), 2, 0)], "left", 20, 0.9)
    assert calls == []
