"""The sign vote: signs are elected by the sum, and only entries that have them are merged."""

import pytest
import torch

from _support import pieces
from submerge.methods._sign_consensus import consensus, disjoint_merge

TERMS = [[1.0, 4.0, -1.0, 2.0, 0.0], [3.0, -1.0, -2.0, 0.0, 0.0], [-2.0, -2.0, 1.0, -2.0, 0.0]]


def terms() -> list[torch.Tensor]:
    return [torch.tensor(row) for row in TERMS]


def test_the_sum_is_of_the_entries_that_agree() -> None:
    merged = disjoint_merge(terms(), None)
    assert merged.tolist() == [4.0, 4.0, -3.0, 2.0, 0.0], "a sum of 0 elects +"


def test_the_mean_is_by_the_weights_of_those_that_agree() -> None:
    merged = disjoint_merge(terms(), [1.0, 3.0, 2.0])
    assert merged.tolist() == [1.0, 4.0, -0.75, 2.0, 0.0], "a zero does not take part"


@pytest.mark.parametrize("weights", [None, [0.5, 1.0, 2.0]])
def test_chunks_and_matrices_vote_alike(weights: list[float] | None) -> None:
    x = torch.randn(3, 200, generator=torch.Generator().manual_seed(0))
    (chunk,) = pieces(x, [(0, 200)])
    voted = torch.from_numpy(consensus(chunk, [1.0] * 3, [1.0] * 3, weights))
    assert torch.equal(disjoint_merge(list(x.clone()), weights), voted)
