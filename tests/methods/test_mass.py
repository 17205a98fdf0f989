"""MASS: what its bank and its checkpoint hold."""

import math

import torch

from _updates import assert_close, fold, matrix, normal, rotation
from submerge.algebra import Dense, LowRank
from submerge.methods import METHODS, TensorSpec


def test_the_fixed_merge_is_that_of_tsv_m() -> None:
    updates = [Dense(normal(t, 24, 16).float()) for t in range(4)]
    assert_close(matrix(fold("mass", updates).update), matrix(fold("tsv_m", updates).update), 1e-5)
    factors = [LowRank(normal(t, 24, 2).float(), normal(9 + t, 2, 16).float()) for t in range(4)]
    assert_close(matrix(fold("mass", factors).update), matrix(fold("tsv_m", factors).update), 1e-5)


def test_the_bank_is_as_large_as_its_bound() -> None:
    gate = METHODS["mass"].gate
    assert gate is not None
    rule = gate.bound
    assert rule is not None
    for shape in ((24, 16), (3, 16), (16,), (4, 3, 2, 2)):
        count = 4
        flat = (shape[0], math.prod(shape[1:]))
        updates = [Dense(normal(t, *flat).float()) for t in range(count)]
        options = {o.name: o.default for o in METHODS["mass"].options}
        spec = TensorSpec("w", shape, count)
        method = METHODS["mass"].matrix
        assert method is not None
        bank = method(updates, spec, options).bank
        assert sum(k.nbytes for k in bank.values()) == count * rule(spec, options, 0).nbytes
        if shape == (24, 16):
            assert sum(k.numel() for k in bank.values()) == count * 4 * (24 + 16 + 1)
            assert rule(spec, options, 0).rank == 4
            assert rule(spec, options, 3).rank == 3


def test_energy_keeps_the_share_that_is_asked_for() -> None:
    u, v = rotation(1, 24), rotation(2, 16)
    s = torch.tensor([8.0, 4.0, 2.0, 1.0], dtype=torch.float64)
    update = Dense((u[:, :4] @ s.diag() @ v[:, :4].T).float())
    for share, rank in ((0.7, 1), (0.9, 2), (0.98, 3), (1.0, 4)):
        assert fold("mass", [update, update], compression=f"energy:{share}").figures["rank"] == rank
    assert fold("mass", [update] * 2, compression="ratio:0.125").figures["rank"] == 2
    assert fold("mass", [update] * 2, rank=3).figures["rank"] == 3


def test_similar_tasks_may_stay_out_of_the_checkpoint() -> None:
    one, other = Dense(normal(1, 24, 16).float()), Dense(normal(2, 24, 16).float())
    found = fold("mass", [one, one, other], similarity=0.3)
    assert found.figures["fixed"] == [0, 2]
    assert len({name.partition(".")[0] for name in found.bank}) == 3, "the bank has all"


def test_a_zero_update_is_not_kept() -> None:
    found = fold("mass", [Dense(torch.zeros(24, 16)), Dense(normal(1, 24, 16).float())])
    assert {name.partition(".")[0] for name in found.bank} == {"1"}
