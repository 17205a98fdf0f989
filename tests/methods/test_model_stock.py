"""Model Stock goes as far as updates agree."""

import math

import pytest
import torch

from _states import assert_close, zeros
from _support import State, family, state
from submerge.engine import merge_state_dicts


def orthogonal(count: int, norms: list[float]) -> tuple[State, list[State]]:
    """Return a base, and models with orthogonal updates of these norms."""
    base = state(0, {"w": (30, 20)})
    q, _ = torch.linalg.qr(state(1, {"w": (600, count)}, torch.float64)["w"])
    return base, [{"w": (base["w"] + n * q[:, t].view(30, 20)).float()} for t, n in enumerate(norms)]


@pytest.mark.parametrize("variant", ["mergekit", "paper"])
def test_model_stock_of_orthogonal_updates_is_the_base(variant: str) -> None:
    base, models = orthogonal(3, [1.0, 2.0, 3.0])
    assert_close(merge_state_dicts(models, base=base, method="model_stock", variant=variant), base)


def test_model_stock_goes_as_far_as_updates_agree() -> None:
    """Two updates at 60°: c = 1/2, r = 2/3."""
    base, (one, other) = orthogonal(2, [1.0, 1.0])
    a, b = one["w"] - base["w"], other["w"] - base["w"]
    second = {"w": base["w"] + 0.5 * a + math.sqrt(0.75) * b}
    merged = merge_state_dicts([one, second], base=base, method="model_stock")["w"]
    torch.testing.assert_close(merged, base["w"] + (1.5 * a + math.sqrt(0.75) * b) / 3, rtol=0, atol=1e-6)


def test_model_stock_of_opposite_updates_is_the_base() -> None:
    base, (model,) = family(1)
    other = {key: 2 * base[key] - model[key] for key in base}
    assert_close(merge_state_dicts([model, other], base=base, method="model_stock"), base)


def test_model_stock_paper_goes_by_direction_however_small_the_updates() -> None:
    base = zeros(state(0))
    _, models = family(2)
    tiny = [{k: v * 2.0**-20 for k, v in m.items()} for m in models]
    paper = merge_state_dicts(tiny, base=base, method="model_stock", variant="paper")
    full = merge_state_dicts(models, base=base, method="model_stock", variant="paper")
    assert_close(paper, {k: v * 2.0**-20 for k, v in full.items()}, atol=0)
    pulled = merge_state_dicts(tiny, base=base, method="model_stock")
    assert all(pulled[k].norm() < 0.1 * paper[k].norm() for k in ("matrix", "conv", "cube"))
