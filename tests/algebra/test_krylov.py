"""The steps of the block Krylov iteration, each by itself."""

import math

import pytest
import torch

from _updates import assert_close, normal, rotation
from submerge.algebra import _krylov as krylov

SIZE, WIDTH = 200, 12


def matrix_of(values: torch.Tensor, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a symmetric matrix with these eigenvalues, and its eigenvectors."""
    vectors = rotation(seed, len(values))
    return (vectors * values) @ vectors.T, vectors


def test_a_basis_is_orthonormal_and_spans_the_krylov_space() -> None:
    """Powers of G make the blocks almost parallel: one orthogonalisation alone would not do."""
    g, _ = matrix_of(torch.arange(1, SIZE + 1, dtype=torch.float64) ** -3.0)
    start = normal(0, SIZE, WIDTH)
    basis, image = krylov._krylov_basis(lambda x: g @ x, start)
    assert basis.shape == (SIZE, krylov.ROUNDS * WIDTH)
    assert_close(basis.T @ basis, torch.eye(basis.shape[1], dtype=torch.float64), 1e-13)
    assert_close(image, g @ basis, 1e-13)
    x = start
    for _ in range(krylov.ROUNDS):
        x = x / x.norm(dim=0)
        assert_close(basis @ (basis.T @ x), x, 1e-10)
        x = g @ x


def test_ritz_pairs_of_an_invariant_subspace_are_eigenpairs() -> None:
    values = torch.arange(SIZE, 0, -1, dtype=torch.float64)
    g, vectors = matrix_of(values)
    basis = vectors[:, :40] @ rotation(3, 40)
    ritz, ritz_vectors, images = krylov._rayleigh_ritz(basis, g @ basis, WIDTH)
    assert_close(ritz, values[: WIDTH + 1], 1e-12)
    assert_close(ritz_vectors @ ritz_vectors.T, vectors[:, :WIDTH] @ vectors[:, :WIDTH].T, 1e-10)
    assert_close(images, ritz_vectors * ritz[:WIDTH], 1e-10)


@pytest.mark.parametrize("angle", [1e-2, 1e-4])
def test_what_is_misplaced_is_the_energy_across_the_cut(angle: float) -> None:
    """Vector 3 of 3 is rotated towards the fourth: a share λ_3 sin² of the trace leaves the subspace."""
    values = torch.tensor([9.0, 5.0, 4.0, 1.0, 0.0], dtype=torch.float64)
    g, vectors = matrix_of(values)
    rotated = vectors.clone()
    rotated[:, 2] = math.cos(angle) * vectors[:, 2] + math.sin(angle) * vectors[:, 3]
    share = krylov._misplaced(values, rotated[:, :4], g @ rotated[:, :4], 3, float(values.sum()))
    assert share == pytest.approx(math.sin(angle) * math.sqrt(4 / 19), rel=0.02)
    assert krylov._misplaced(values, vectors[:, :4], g @ vectors[:, :4], 3, 19.0) < 1e-14


def test_a_rotation_within_the_subspace_misplaces_nothing() -> None:
    values = torch.tensor([5.0, 5.0, 1.0, 0.5], dtype=torch.float64)
    g, vectors = matrix_of(values)
    inside = vectors[:, :2] @ rotation(2, 2)
    assert krylov._misplaced(values, inside, g @ inside, 2, 11.5) < 1e-14


def test_it_gives_up_after_a_basis_without_progress() -> None:
    products = 0
    g, _ = matrix_of(torch.linspace(1, 0.9, SIZE, dtype=torch.float64))

    def apply(x: torch.Tensor) -> torch.Tensor:
        nonlocal products
        products += 1
        return g @ x

    assert krylov.krylov_eigenpairs(apply, SIZE, 4, float(g.trace())) is None
    assert products == krylov.ROUNDS, "one basis, and no second one"


@pytest.mark.parametrize(
    ("values", "rank"), [([], 0), ([0.0, 0.0], 0), ([1.0, 1e-6, 0.0], 2), ([1.0, 1e-20], 1)]
)
def test_the_numerical_rank_counts_what_is_above_rounding(values: list[float], rank: int) -> None:
    assert krylov.numerical_rank(torch.tensor(values, dtype=torch.float64)) == rank
