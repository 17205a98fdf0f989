"""What tells tasks apart at one activation, against the plain formulas."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from _updates import rotation
from submerge.algebra import Triplets
from submerge.gating import Gate, GatedFactors, Recent
from submerge.methods.mass import Pooling, Score
from submerge.routing import TokenPooling, site_score

N, M, R, T = 20, 12, 3, 3


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def factors(seed: int = 0, turn: torch.Tensor | None = None, transposed: bool = False) -> GatedFactors:
    parts = {}
    for t in range(T):
        u, s, vh = torch.linalg.svd(normal(seed + t, M, N), full_matrices=False)
        right = vh[:R] if turn is None else turn @ vh[:R]
        one = Triplets(u[:, :R], s[:R], right)
        parts[t] = Triplets(right.T, s[:R], u[:, :R].T) if transposed else one
    return GatedFactors(Gate(Recent(1 << 20)), "w", parts, rule="tsv_m", scale=1.0, transposed=transposed)


def rows(weight: GatedFactors, t: int) -> torch.Tensor:
    return weight.down[weight.places[t]].double()


@given(st.integers(0, 10**6))
def test_the_residual_is_that_of_the_reconstruction(seed: int) -> None:
    weight, z = factors(seed), normal(seed + 9, 5, N)
    found = site_score(weight, T, Score("residual"), "l2")(z)
    for t in range(T):
        v = rows(weight, t)
        plain = (z.double() - z.double() @ v.T @ v).norm(dim=1)
        assert (found[:, t] - plain).abs().max() < 1e-5
        inside = (z.double() @ v.T).norm(dim=1)
        assert (found[:, t] ** 2 + inside**2 - z.double().norm(dim=1) ** 2).abs().max() < 1e-4
    energy = torch.stack([(z.double() @ rows(weight, t).T).norm(dim=1) for t in range(T)], dim=1)
    assert torch.equal(found.argmin(1), energy.argmax(1))


def test_the_residual_does_not_depend_on_the_basis() -> None:
    z = normal(9, 5, N)
    plain = site_score(factors(), T, Score("residual"), "l2")(z)
    other = site_score(factors(turn=rotation(3, R).float()), T, Score("residual"), "l2")(z)
    assert (plain - other).abs().max() < 1e-5


def test_what_lies_in_a_subspace_has_no_residual() -> None:
    weight = factors()
    z = (normal(5, 4, R).double() @ rows(weight, 1)).float()
    found = site_score(weight, T, Score("residual"), "l2")(z)
    assert found[:, 1].max() < 1e-2 * z.norm(dim=1).min(), "float32 cancels here, and must not give NaN"
    assert found.argmin(1).tolist() == [1] * 4


def test_mahalanobis_is_a_multiple_of_l2() -> None:
    """The authors invert the covariance of V_t's rows plus 10⁻³ I."""
    weight, z = factors(), normal(9, 5, N)
    found = site_score(weight, T, Score("residual"), "mahalanobis")(z)
    for t in range(T):
        v = rows(weight, t)
        centred = v - v.mean(0)
        covariance = centred.T @ centred / (R - 1) + 1e-3 * torch.eye(N)
        e = z.double() - z.double() @ v.T @ v
        plain = (e @ torch.linalg.inv(covariance) * e).sum(1).sqrt()
        assert (found[:, t] / plain - 1).abs().max() < 1e-4


def test_l1() -> None:
    weight, z = factors(), normal(9, 5, N)
    found = site_score(weight, T, Score("residual"), "l1")(z)
    v = rows(weight, 2)
    assert (found[:, 2] - (z - z.double() @ v.T @ v).abs().sum(1)).abs().max() < 1e-4


def second_moment(weight: GatedFactors, t: int) -> torch.Tensor:
    at = weight.places[t]
    part = weight.down[at].double() * weight.values[at].double().unsqueeze(1)
    found = part.T @ part
    return found * (N / found.trace())


def test_whitened_residuals() -> None:
    weight, z = factors(), normal(9, 5, N)
    found = site_score(weight, T, Score("whitened"), "l2")(z)
    mixed = 0.5 * torch.eye(N) + 0.5 * sum(second_moment(weight, t) for t in range(T)) / T
    levels, vectors = torch.linalg.eigh(mixed)
    turn = vectors @ (levels**-0.5).diag() @ vectors.T
    for t in range(T):
        q, _ = torch.linalg.qr(turn @ rows(weight, t).T)
        white = z.double() @ turn
        plain = (white - white @ q @ q.T).norm(dim=1)
        assert (found[:, t] - plain).abs().max() < 1e-4


def test_the_gaussian_score_is_a_log_density() -> None:
    weight, z = factors(), normal(9, 5, N)
    found = site_score(weight, T, Score("gaussian"), "l2")(z)
    unit = z.double() * (N**0.5 / z.double().norm(dim=1, keepdim=True))
    plain = torch.stack(
        [
            -torch.distributions.MultivariateNormal(
                torch.zeros(N).double(), 0.5 * torch.eye(N) + 0.5 * second_moment(weight, t)
            ).log_prob(unit)
            for t in range(T)
        ],
        dim=1,
    )
    difference = found - plain  # what all tasks have in common
    assert (difference - difference[:, :1]).abs().max() < 1e-4


def test_leading_directions_are_told_from_lesser_ones() -> None:
    weight, z = factors(), normal(9, 5, N)
    found = site_score(weight, T, Score("leading"), "l2")(z)
    for t in range(T):
        inner = z.double() @ rows(weight, t).T  # R = 3: two lead
        plain = (inner[:, 2].square() / inner.square().sum(1) * 3).sqrt()
        assert (found[:, t] - plain).abs().max() < 1e-5
    along = rows(weight, 1)[:1].float() + 0.2 * normal(5, 1, N)
    assert site_score(weight, T, Score("leading"), "l2")(along).argmin() == 1


def test_an_update_without_lesser_directions_says_nothing() -> None:
    part = Triplets(normal(1, M, 1), normal(2, 1).abs(), normal(3, 1, N))
    weight = GatedFactors(Gate(Recent(1 << 20)), "w", {1: part}, rule="tsv_m", scale=1.0)
    look = site_score(weight, T, Score("leading"), "l2")
    assert look(normal(9, 5, N)).eq(1).all(), "one direction, or none"
    assert site_score(factors(), T, Score("leading"), "l2")(torch.zeros(2, N)).eq(1).all(), "nothing is read"


def test_a_weight_that_is_stored_turned_has_its_inputs_on_the_left() -> None:
    z = normal(9, 5, N)
    plain, transposed = (
        site_score(factors(transposed=way), T, Score("residual"), "l2")(z) for way in (False, True)
    )
    assert (plain - transposed).abs().max() < 1e-6


@pytest.mark.parametrize("score", ["residual", "leading", "whitened", "gaussian"])
def test_tokens_are_looked_at_one_by_one_and_padding_is_not(score: str) -> None:
    weight, x = factors(), normal(9, 2, 6, N)
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 1, 1, 1, 1, 1]])
    look = site_score(weight, T, Score(score), "l2")
    found = look(TokenPooling(Pooling.TOKENS, 2, mask)(x))
    for row in range(2):
        some = x[row][mask[row].bool()].unsqueeze(0)
        assert (look(TokenPooling(Pooling.TOKENS, 1, None)(some)) - found[row]).abs().max() < 1e-4
    if score == "residual":
        each = look(x[0, :3])
        assert (found[0] - each.square().mean(0).sqrt()).abs().max() < 1e-5


def test_pools() -> None:
    x = normal(9, 2, 6, N)
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1]])
    assert torch.equal(TokenPooling(Pooling.CLS, 2, mask)(x), x[:, 0])
    found = TokenPooling(Pooling.MEAN, 2, mask)(x)
    assert (found[0] - x[0, :3].mean(0)).abs().max() < 1e-6
    assert (found[1] - x[1, 5]).abs().max() < 1e-6
    assert (TokenPooling(Pooling.MEAN, 2, None)(x.reshape(12, N)) - x.mean(1)).abs().max() < 1e-6, (
        "tokens in one dimension"
    )


def test_a_task_that_does_not_touch_a_weight_explains_nothing() -> None:
    weight, z = factors(), normal(9, 5, N)
    found = site_score(weight, T + 1, Score("residual"), "l2")(z)
    assert (found[:, T] - z.norm(dim=1)).abs().max() < 1e-5
