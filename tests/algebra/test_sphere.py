"""Coefficients on the sphere, against the vectors that they stand for."""

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from submerge.algebra import karcher_coefficients, slerp_coefficients

Matrix = npt.NDArray[np.float64]
SEEDS = st.integers(0, 2**32 - 1)


def vectors(seed: int, count: int, size: int = 20, around: float = 0.0) -> Matrix:
    """Return vectors [count, size]; with `around`, about one direction, as fine-tunes are."""
    random = np.random.default_rng(seed)
    return random.standard_normal((count, size)) + around * random.standard_normal(size)


def unit(v: Matrix) -> Matrix:
    return v / np.linalg.norm(v)


def karcher(x: Matrix, weights: list[float] | None = None, max_iter: int = 100, tol: float = 1e-12) -> Matrix:
    weights = weights or [1 / len(x)] * len(x)
    return karcher_coefficients(x @ x.T, weights, max_iter, tol) @ x


def slerp(a: Matrix, b: Matrix, t: float, linear_above: float = 1.0) -> Matrix:
    p, q = slerp_coefficients(float(unit(a) @ unit(b)), t, linear_above)
    return p * a + q * b


@given(SEEDS, st.floats(-0.5, 1.5))
def test_slerp_stays_on_the_sphere_at_an_even_pace(seed: int, t: float) -> None:
    a, b = (unit(v) for v in vectors(seed, 2))
    v = slerp(a, b, t)
    omega = math.acos(a @ b)
    assert np.linalg.norm(v) == pytest.approx(1, abs=1e-12)
    assert a @ v == pytest.approx(math.cos(t * omega), abs=1e-12)
    assert b @ v == pytest.approx(math.cos((1 - t) * omega), abs=1e-12)


@pytest.mark.parametrize("cos", [-1.1, -1.0, -0.99, 0.0, 0.5, 0.9996, 1.0, 1.1])
def test_slerp_begins_and_ends_at_its_inputs(cos: float) -> None:
    assert slerp_coefficients(cos, 0.0, 0.9995) == pytest.approx((1, 0), abs=1e-15)
    assert slerp_coefficients(cos, 1.0, 0.9995) == pytest.approx((0, 1), abs=1e-15)


@pytest.mark.parametrize("cos", [0.99951, 1.0, 1 + 1e-9, -0.99951, -1.0, -1 - 1e-9])
def test_slerp_is_straight_beyond_its_limit(cos: float) -> None:
    assert slerp_coefficients(cos, 0.3, 0.9995) == (0.7, 0.3)


@pytest.mark.parametrize("cos", [-1.0, -1 + 1e-12, -1 + 1e-7, -1 + 4e-7])
def test_slerp_of_opposites_is_straight_however_their_cosine_is_rounded(cos: float) -> None:
    assert slerp_coefficients(cos, 0.3, 1 - 5e-8) == (0.7, 0.3)


@pytest.mark.parametrize("cos", [1 - 1e-16, 1 - 1e-12, 1 - 1e-8])
def test_slerp_of_near_equals_is_near_straight(cos: float) -> None:
    assert slerp_coefficients(cos, 0.3, 1.0) == pytest.approx((0.7, 0.3), abs=1e-7)


@given(SEEDS)
def test_karcher_of_two_equal_norms_is_the_midpoint_of_slerp(seed: int) -> None:
    a, b = (3 * unit(v) for v in vectors(seed, 2))
    np.testing.assert_allclose(karcher(np.stack([a, b])), slerp(a, b, 0.5), atol=1e-12)


@given(SEEDS, st.integers(2, 6), st.booleans())
def test_karcher_minimises_the_squared_angles(seed: int, count: int, weighted: bool) -> None:
    """At the mean the tangent vectors to the inputs balance: Σ α_t log_u u_t = 0."""
    x = vectors(seed, count, around=2.0)
    weights = [(t + 1) / sum(range(count + 1)) if weighted else 1 / count for t in range(count)]
    u = unit(karcher(x, weights))
    gradient = np.zeros_like(u)
    for alpha, row in zip(weights, x, strict=True):
        angle = math.acos(np.clip(u @ unit(row), -1, 1))
        gradient += alpha * angle / math.sin(angle) * (unit(row) - (u @ unit(row)) * u)
    assert np.linalg.norm(gradient) < 1e-9


@given(SEEDS, st.integers(1, 5))
def test_karcher_has_the_mean_norm(seed: int, count: int) -> None:
    x = vectors(seed, count) * np.arange(1, count + 1)[:, None]
    assert np.linalg.norm(karcher(x)) == pytest.approx(np.linalg.norm(x, axis=1).mean())


@given(SEEDS)
def test_karcher_of_equal_inputs_is_that_input(seed: int) -> None:
    (x,) = vectors(seed, 1)
    np.testing.assert_allclose(karcher(np.stack([x, x, x])), x, rtol=1e-12)


@given(SEEDS, st.permutations(range(4)))
def test_karcher_does_not_depend_on_order(seed: int, order: list[int]) -> None:
    x = vectors(seed, 4, around=1.0)
    np.testing.assert_allclose(karcher(x), karcher(x[order]), atol=1e-9)


def test_karcher_turns_with_its_inputs() -> None:
    x = vectors(0, 3)
    turn, _ = np.linalg.qr(vectors(1, 20))
    np.testing.assert_allclose(karcher(x @ turn), karcher(x) @ turn, atol=1e-9)


def test_karcher_without_steps_is_the_direction_of_the_mean() -> None:
    x = vectors(0, 3)
    mean = sum(unit(row) for row in x)
    lengths = np.linalg.norm(x, axis=1).mean()
    np.testing.assert_allclose(karcher(x, max_iter=0), lengths * unit(mean), atol=1e-12)


def test_karcher_takes_steps_along_great_circles() -> None:
    """One step: exp_u(Σ α_t log_u u_t), here from a mean that lies far from the middle of the arc."""
    x = np.array([[1.0, 0.0], [math.cos(2.5), math.sin(2.5)]])
    start = unit(0.7 * x[0] + 0.3 * x[1])
    at = math.atan2(start[1], start[0])
    angle = at + 0.7 * (0 - at) + 0.3 * (2.5 - at)
    found = karcher(x, [0.7, 0.3], max_iter=1)
    np.testing.assert_allclose(found, [math.cos(angle), math.sin(angle)], atol=1e-12)
    assert angle == pytest.approx(0.3 * 2.5), "on a circle one step is enough"


def test_karcher_steps_do_not_overshoot() -> None:
    """Far from the plane: a step's length is its angle, which cos and sin must share."""
    x = np.eye(3)
    weights = [0.8, 0.1, 0.1]
    u = unit(np.array(weights))
    step = sum(
        a * (math.acos(u @ v) / math.sin(math.acos(u @ v))) * (v - (u @ v) * u)
        for a, v in zip(weights, x, strict=True)
    )
    length = np.linalg.norm(step)
    found = karcher(x, weights, max_iter=1)
    np.testing.assert_allclose(found, math.cos(length) * u + math.sin(length) * step / length, atol=1e-12)


def test_karcher_leaves_out_vectors_without_direction() -> None:
    """As mergekit does: a zero vector has no say in the direction, but counts in the mean norm."""
    x = vectors(0, 3)
    with_zero = karcher(np.concatenate([x, np.zeros((1, 20))]))
    np.testing.assert_allclose(unit(with_zero), unit(karcher(x)), atol=1e-12)
    assert np.linalg.norm(with_zero) == pytest.approx(np.linalg.norm(x, axis=1).sum() / 4)
    assert not karcher(np.zeros((2, 20))).any()


@pytest.mark.parametrize("tol", [0.0, 1e-9, 1e-5])
@pytest.mark.parametrize("seed", range(5))
def test_karcher_of_opposites_stays_on_the_sphere(seed: int, tol: float) -> None:
    """They have no one mean; what comes out must have their norm."""
    x, y = (unit(v) for v in vectors(seed, 2))
    for inputs in ([x, -x], [x, -x, y, -y], [x, x, -x, -x], [x, -x * (1 + 1e-9)]):
        gram = np.float32(np.stack(inputs) @ np.stack(inputs).T).astype(np.float64)
        c = karcher_coefficients(gram, [1 / len(inputs)] * len(inputs), 10, tol)
        assert np.linalg.norm(c @ np.stack(inputs)) == pytest.approx(1, abs=1e-6)
        assert np.abs(c).max() < 1e4, "x and −x cancel, but float32 rounding of the weights does not"


@pytest.mark.parametrize("tol", [0.0, 1e-5])
def test_karcher_of_a_vector_and_its_opposite_is_the_first(tol: float) -> None:
    (x,) = vectors(0, 1)
    np.testing.assert_allclose(karcher(np.stack([x, -x]), tol=tol), x, rtol=1e-12)


@pytest.mark.parametrize("angle", [3.1, 3.14, math.pi - 2e-3, math.pi - 1e-5, math.pi - 1e-9])
def test_karcher_of_near_opposites_has_bounded_coefficients(angle: float) -> None:
    """Coefficients amplify float32 rounding of the weights: more than a thousand would be seen."""
    gram = np.array([[1, math.cos(angle)], [math.cos(angle), 1]])
    assert np.abs(karcher_coefficients(gram, [0.5, 0.5], 10, 1e-5)).max() < 2000


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_karcher_of_unknown_products_is_unknown(bad: float) -> None:
    gram = np.array([[1, 0.5], [0.5, bad]])
    assert np.isnan(karcher_coefficients(gram, [0.5, 0.5], 10, 1e-5)).all()
