"""NearSwap: no element moves further than t."""

import pytest
import torch

from _states import assert_equal
from _support import family
from submerge.engine import merge_state_dicts
from submerge.errors import RequestError

UPDATES = [0.0, 1e-7, 5e-7, 1e-6, 1e-4, -1e-4, 3.0, -3.0]


@pytest.mark.parametrize(
    ("t", "moved"),
    [
        (1.0, [0.0, 1e-7, 5e-7, 1e-6, 1e-4, -1e-4, 1.0, -1.0]),
        (1e-5, [0.0, 1e-7, 5e-7, 1e-6, 1e-5, -1e-5, 1e-5, -1e-5]),
        (5e-7, [0.0, 5e-8, 2.5e-7, 5e-7, 5e-7, -5e-7, 5e-7, -5e-7]),
        (0.0, [0.0] * 8),
        (-1.0, [0.0] * 8),
    ],
)
def test_elements_move_by_no_more_than_t(t: float, moved: list[float]) -> None:
    """Differences below 1e-6 are divided by as if they were that large."""
    base, model = {"w": torch.zeros(8)}, {"w": torch.tensor(UPDATES)}
    merged = merge_state_dicts([model], base=base, method="nearswap", t=t)["w"]
    torch.testing.assert_close(merged, torch.tensor(moved), rtol=1e-6, atol=0)


def test_a_large_t_gives_the_other_model() -> None:
    base, (model,) = family(1, dtype=torch.bfloat16)
    assert_equal(merge_state_dicts([model], base=base, method="nearswap", t=100), model)


@pytest.mark.parametrize("count", [0, 2])
def test_it_merges_one_model_with_the_base(count: int) -> None:
    base, models = family(count, {"w": (4,)})
    with pytest.raises(RequestError):
        merge_state_dicts(models, base=base, method="nearswap", t=0.1)
