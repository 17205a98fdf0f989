"""Task arithmetic's sparse relatives: densities, votes, rescaling."""

import pytest
import torch

from _states import assert_close, assert_equal
from _support import SHAPES, family
from submerge.engine import merge_state_dicts

SPARSE = ["ties", "dare_linear", "dare_ties", "della", "della_linear", "breadcrumbs", "breadcrumbs_ties"]
VOTING = ["ties", "dare_ties", "della", "breadcrumbs_ties"]


@pytest.mark.parametrize("method", SPARSE)
def test_density_one_keeps_all(method: str) -> None:
    """For one model every relative is then task arithmetic; without a vote also for several."""
    base, models = family(3)
    models = models[:1] if method in VOTING else models
    weights = [0.5, 0.25, 1.0][: len(models)]
    plain = merge_state_dicts(models, base=base, method="task_arithmetic", weight=weights)
    merged = merge_state_dicts(models, base=base, method=method, weight=weights, density=1, normalize=False)
    assert_equal(merged, plain)


@pytest.mark.parametrize("method", SPARSE)
@pytest.mark.parametrize("rescale", [True, False])
def test_density_zero_is_the_base(method: str, rescale: bool) -> None:
    base, models = family(2)
    assert_equal(
        merge_state_dicts(models, base=base, method=method, weight=1, density=0, rescale=rescale), base
    )


@pytest.mark.parametrize("method", VOTING)
def test_voters_agree_on_updates_of_one_sign(method: str) -> None:
    base, models = family(3)
    up = [{k: base[k] + (m[k] - base[k]).abs() for k in base} for m in models]
    plain = merge_state_dicts(up, base=base, method="task_arithmetic", weight=[0.5, 0.25, 1.0])
    merged = merge_state_dicts(
        up, base=base, method=method, weight=[0.5, 0.25, 1.0], density=1, normalize=False
    )
    assert_close(merged, plain)


def test_ties_of_one_task_is_that_task() -> None:
    base, (model,) = family(1)
    assert_close(merge_state_dicts([model], base=base, method="ties", weight=1), model)
    assert_close(merge_state_dicts([model], base=base, method="ties", weight=0.3, variant="mergekit"), model)


def test_ties_elects_by_the_sum_and_averages_who_agrees() -> None:
    base = {"w": torch.zeros(4)}
    models = [
        {"w": torch.tensor(v)}
        for v in ([1.0, 4.0, -1.0, 2.0], [3.0, -1.0, -2.0, 0.0], [-2.0, -2.0, 1.0, -2.0])
    ]
    merged = merge_state_dicts(models, base=base, method="ties", weight=1)
    assert merged["w"].tolist() == [2.0, 4.0, -1.5, 2.0], "a tie is positive; a zero does not take part"


def test_ties_paper_elects_before_it_weighs() -> None:
    base = {"w": torch.zeros(1)}
    models = [{"w": torch.tensor([3.0])}, {"w": torch.tensor([-1.0])}, {"w": torch.tensor([1.0])}]
    weights = [0.1, 1.0, 0.2]
    ours = merge_state_dicts(models, base=base, method="ties", weight=weights)["w"]
    paper = merge_state_dicts(models, base=base, method="ties", weight=weights, variant="paper")["w"]
    assert ours.item() == pytest.approx(-1.0), "0.3 − 1 + 0.2 < 0: the second alone, divided by its weight"
    assert paper.item() == pytest.approx((0.1 * 3 + 0.2 * 1) / 2), "3 − 1 + 1 > 0: two agree"


@pytest.mark.parametrize(("density", "kept"), [(0.5, 50), (0.999, 99), (0.011, 1), (0.0001, 1)])
def test_ties_keeps_its_share_and_at_least_one(density: float, kept: int) -> None:
    base, models = family(1, {"w": (10, 10)})
    merged = merge_state_dicts(models, base=base, method="ties", weight=1, density=density)["w"]
    update, was = (merged - base["w"]).flatten(), (models[0]["w"] - base["w"]).flatten()
    assert torch.equal(update.nonzero().flatten(), was.abs().topk(kept).indices.sort().values)


def test_breadcrumbs_without_outliers_is_task_arithmetic() -> None:
    base, models = family(3)
    plain = merge_state_dicts(models, base=base, method="task_arithmetic", weight=0.5)
    assert_equal(merge_state_dicts(models, base=base, method="breadcrumbs", weight=0.5, gamma=0), plain)


@pytest.mark.parametrize(
    ("density", "gamma", "first"), [(0.5, 0.1, 10), (0.5, 0.0, 0), (0.95, 0.1, 5), (0.3, 0.9, 70)]
)
def test_breadcrumbs_drops_outliers_then_the_smallest(density: float, gamma: float, first: int) -> None:
    """Of 100 entries; where γ + density > 1 fewer outliers are dropped."""
    base, models = family(1, {"w": (10, 10)})
    options = {"density": density, "gamma": gamma}
    merged = merge_state_dicts(models, base=base, method="breadcrumbs", weight=1, **options)["w"]
    update, was = (merged - base["w"]).flatten(), (models[0]["w"] - base["w"]).flatten()
    ordered = was.abs().sort(descending=True).indices
    wanted = ordered[first : first + round(100 * density)].sort().values
    assert torch.equal(update.nonzero().flatten(), wanted)


@pytest.mark.parametrize(
    "method", ["ties", "breadcrumbs", "breadcrumbs_ties", "dare_linear", "dare_ties", "della", "della_linear"]
)
def test_rescale_restores_the_l1_norm(method: str) -> None:
    base, models = family(1, SHAPES, seed=3)
    options = {"density": 0.5, "normalize": False, "rescale": True}
    merged = merge_state_dicts(models, base=base, method=method, weight=1, **options)
    for key in ("matrix", "norm", "conv", "cube"):
        before, after = (one[key] - base[key] for one in (models[0], merged))
        assert after.abs().sum().item() == pytest.approx(before.abs().sum().item(), rel=1e-5), key
        assert (after == 0).any()
