"""Old names do what the new ones do, and warn."""

from collections.abc import Callable

import pytest
import torch

from submerge.algebra import Chunk, Dense, LowRank, Update, Zero, bernoulli, coins, stream_key

MATRIX = torch.arange(6.0).view(3, 2)
UPDATES = (Dense(MATRIX), LowRank(MATRIX, torch.eye(2)), Zero((3, 2)))


@pytest.mark.parametrize("update", UPDATES, ids=lambda update: type(update).__name__)
@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (lambda u: u.times(torch.eye(2)), lambda u: u.matmul(torch.eye(2)), r"matmul\(x\)"),
        (lambda u: u.under(MATRIX), lambda u: u.rmatmul(MATRIX.T), r"rmatmul\(x\.T\)"),
        (lambda u: u.gram("left"), lambda u: u.row_gram(), r"row_gram\(\)"),
        (lambda u: u.gram("right"), lambda u: u.column_gram(), r"column_gram\(\)"),
    ],
)
def test_old_names_of_an_update(
    update: Update, old: Callable[[Update], torch.Tensor], new: Callable[[Update], torch.Tensor], says: str
) -> None:
    with pytest.warns(DeprecationWarning, match=says) as warned:
        assert torch.equal(old(update), new(update))
    assert warned[0].filename == __file__, "the warning is for the line that has the old name"


def test_old_names_of_random_draws() -> None:
    key = stream_key(0, "weight", 0)
    with pytest.warns(DeprecationWarning, match="bernoulli"):
        assert torch.equal(coins(key, 3, 100, 0.3), bernoulli(key, 3, 100, 0.3))
    chunk = Chunk(0, torch.zeros(1, 100), width=1, finite=True, keys=[key])
    with pytest.warns(DeprecationWarning, match=r"Chunk\.bernoulli"):
        assert torch.equal(chunk.toss(0, 0.3), chunk.bernoulli(0, 0.3))
