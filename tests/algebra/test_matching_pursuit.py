"""Orthogonal matching pursuit: what least squares over the chosen atoms give, one target at a time."""

from __future__ import annotations

import pytest
import torch

from submerge.algebra import SparseCodes, matching_pursuit

DRAW = torch.Generator().manual_seed(0)
ATOMS = torch.randn(60, 24, generator=DRAW) * torch.rand(60, 1, generator=DRAW).add(0.1)
TARGETS = torch.randn(40, 24, generator=DRAW)


def approximated(codes: SparseCodes, atoms: torch.Tensor = ATOMS) -> torch.Tensor:
    return torch.bmm(codes.coefficients[:, None], atoms.double()[codes.indices])[:, 0]


def plain(target: torch.Tensor, atoms: torch.Tensor, k: int) -> tuple[list[int], torch.Tensor]:
    """Return the atoms of a target, and their coefficients: a least-squares problem a step."""
    atoms, target = atoms.double(), target.double()
    directions, residual = atoms / atoms.norm(dim=1, keepdim=True), target
    chosen: list[int] = []
    for _ in range(k):
        chosen.append(int((directions @ residual).abs().argmax()))
        coefficients = torch.linalg.lstsq(atoms[chosen].T, target[:, None]).solution[:, 0]
        residual = target - coefficients @ atoms[chosen]
    return chosen, coefficients


def test_it_is_the_plain_algorithm() -> None:
    codes = matching_pursuit(TARGETS, ATOMS, 7)
    assert codes.indices.shape == codes.coefficients.shape == (40, 7)
    for target, indices, coefficients in zip(TARGETS, codes.indices, codes.coefficients, strict=True):
        chosen, expected = plain(target, ATOMS, 7)
        assert indices.tolist() == chosen
        torch.testing.assert_close(coefficients, expected, rtol=1e-9, atol=1e-12)


def test_residuals_fall_and_are_orthogonal_to_the_chosen_atoms() -> None:
    before = torch.ones(40, dtype=torch.float64)
    for k in range(1, 25):
        codes = matching_pursuit(TARGETS, ATOMS, k)
        residuals = TARGETS.double() - approximated(codes)
        relative = residuals.norm(dim=1) / TARGETS.double().norm(dim=1)
        torch.testing.assert_close(codes.residuals, relative, rtol=1e-9, atol=1e-12)
        assert ((codes.residuals < before) | (before < 1e-6)).all()
        inner = torch.bmm(ATOMS.double()[codes.indices], residuals[:, :, None])
        assert (inner[:, :, 0] * (codes.coefficients != 0)).abs().max() < 1e-12
        before = codes.residuals
    assert before.max() < 1e-6  # as many atoms as dimensions


def test_sparse_combinations_are_recovered() -> None:
    atoms = torch.randn(80, 64, generator=DRAW)
    support = torch.stack([torch.randperm(80, generator=DRAW)[:3] for _ in range(20)])
    weights = torch.rand(20, 3, generator=DRAW).add(1)
    targets = torch.bmm(weights[:, None], atoms[support])[:, 0]
    codes = matching_pursuit(targets, atoms, 8)
    assert codes.residuals.max() < 1e-6
    for indices, coefficients, own, expected in zip(
        codes.indices, codes.coefficients, support, weights, strict=True
    ):
        got = dict(zip(indices.tolist(), coefficients.tolist(), strict=True))
        used = {index: value for index, value in got.items() if abs(value) > 1e-5}
        assert used == pytest.approx(dict(zip(own.tolist(), expected.tolist(), strict=True)), abs=1e-5)


def test_a_multiple_of_an_atom_has_this_atom_alone() -> None:
    codes = matching_pursuit(torch.stack([ATOMS[17], -3 * ATOMS[5]]), ATOMS, 4)
    assert codes.indices[:, 0].tolist() == [17, 5]
    torch.testing.assert_close(codes.coefficients[:, 0], torch.tensor([1.0, -3.0], dtype=torch.float64))
    assert not codes.coefficients[:, 1:].any()
    assert not codes.indices[:, 1:].any()
    assert (approximated(codes)[0].float() == ATOMS[17]).all()


def test_atoms_that_say_nothing_new_end_it() -> None:
    """Zeros, atoms that are there twice, and a target outside of their span."""
    atoms = torch.tensor([[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [0, 1, 0]])
    codes = matching_pursuit(torch.tensor([[3.0, 4, 5], [0, 0, 0], [0, 0, 7]]), atoms, 4)
    assert codes.indices.shape == (3, 3)
    torch.testing.assert_close(
        approximated(codes, atoms), torch.tensor([[3.0, 4, 0], [0, 0, 0], [0, 0, 0]], dtype=torch.float64)
    )
    torch.testing.assert_close(codes.residuals, torch.tensor([0.5**0.5, 0, 1], dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_bytes_depend_neither_on_threads_nor_on_blocks(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    targets, atoms = TARGETS.to(dtype), ATOMS.to(dtype)
    whole = matching_pursuit(targets, atoms, 6)
    monkeypatch.setattr("submerge.algebra._matching_pursuit._ATOMS", 7)
    tiled = matching_pursuit(targets, atoms, 6)
    monkeypatch.setattr("submerge.algebra._matching_pursuit._TARGETS", 16)
    first = matching_pursuit(targets, atoms, 6, threads=1)
    second = matching_pursuit(targets, atoms, 6, threads=3)
    assert (first.coefficients == second.coefficients).all()
    for codes in (tiled, first):
        assert (codes.indices == whole.indices).all()
        torch.testing.assert_close(codes.coefficients, whole.coefficients, rtol=1e-9, atol=1e-12)
