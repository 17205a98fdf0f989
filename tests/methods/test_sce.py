"""SCE selects what varies, weighs by energy, and erases minority signs."""

import pytest

from _states import assert_close, assert_equal, zeros
from _support import family, state
from submerge.engine import merge_state_dicts


@pytest.mark.parametrize("variant", ["mergekit", "paper"])
def test_sce_of_one_model_is_that_model(variant: str) -> None:
    base, (model,) = family(1)
    assert_close(merge_state_dicts([model], base=base, method="sce", variant=variant), model)


def test_sce_of_one_model_and_partial_selection_is_the_base() -> None:
    """One model does not vary, so nothing is selected."""
    base, (model,) = family(1)
    assert_equal(merge_state_dicts([model], base=base, method="sce", select_topk=0.5), base)


def test_sce_that_selects_nothing_is_the_base() -> None:
    base, models = family(3)
    assert_equal(merge_state_dicts(models, base=base, method="sce", select_topk=0), base)


def test_sce_selects_the_varying_share() -> None:
    base, models = family(3, {"w": (40, 25)})
    for model in models[1:]:
        model["w"][:20] = models[0]["w"][:20]  # half of the entries do not vary
    merged = merge_state_dicts(models, base=base, method="sce", select_topk=0.25)["w"]
    changed = merged != base["w"]
    assert changed.sum() == 125
    assert not changed[:20].any()


def test_sce_paper_weighs_small_updates_by_energy() -> None:
    base = zeros(state(0))
    _, models = family(3)
    small = [{k: v * 2.0**-15 * (t + 1) for k, v in m.items()} for t, m in enumerate(models)]
    large = [{k: v * (t + 1) for k, v in m.items()} for t, m in enumerate(models)]
    scaled = {k: v * 2.0**-15 for k, v in merge_state_dicts(large, base=base, method="sce").items()}
    assert_close(merge_state_dicts(small, base=base, method="sce", variant="paper"), scaled, atol=0)
    equal = merge_state_dicts(small, base=base, method="sce")
    assert (equal["matrix"] - scaled["matrix"]).abs().max() > 1e-6


def test_updates_too_small_for_energies_are_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    base = zeros(state(0))
    _, models = family(3)
    small = [{k: v * 2.0**-15 for k, v in model.items()} for model in models]
    with monkeypatch.context() as patch:
        patch.setattr("submerge.methods.sce._weights", lambda energies, floor: pytest.fail("they were"))
        merged = merge_state_dicts(small, base=base, method="sce", select_topk=0.5)
    monkeypatch.setattr("submerge.methods.sce.SURELY", 0.0)
    assert_equal(merge_state_dicts(small, base=base, method="sce", select_topk=0.5), merged)
