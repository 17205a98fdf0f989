"""The gate's settings as values: one place turns the words of recipes into them."""

from __future__ import annotations

from typing import Any

import pytest

from submerge import RequestError
from submerge.methods import METHODS
from submerge.methods.mass import POSITIONS, PRESETS, LayerRule, Pooling, RoutingSettings, Score

DEFAULTS = {o.name: o.default for o in METHODS["mass"].options if o.single} | {"form": ["any", "pair"]}


def values(images: bool = False, low_rank: bool = False, **changed: Any) -> RoutingSettings:
    return RoutingSettings.from_mapping(DEFAULTS | changed, images=images, low_rank=low_rank)


def test_the_defaults() -> None:
    assert values() == RoutingSettings(
        routes_on_base=True,
        one_pass=False,
        layers=LayerRule.parse("auto"),
        positions="all",
        pooling=Pooling.MEAN,
        score=Score.RESIDUAL,
        reference=False,
        norm="l2",
        head_evidence=True,
        select="top1",
        threshold=0.2,
        max_tasks=3,
        temperature=1.0,
        heads="router",
        batch_is_group=False,
        mean_of_residuals=False,
        forms=("any", "pair"),
        calibration=True,
    )


def test_the_papers_preset() -> None:
    paper = values(**PRESETS["paper"])
    assert (paper.routes_on_base, paper.head_evidence, paper.mean_of_residuals) == (False, False, True)
    assert (paper.score, paper.select, paper.heads) == (Score.RESIDUAL, "threshold", "max")
    assert (paper.pooling, values(images=True, **PRESETS["paper"]).pooling) == (Pooling.MEAN, Pooling.CLS)
    assert paper.position("encoder.block", 12) == "attention_out"
    assert paper.position("vision_model.encoder.layers", 12) == "mlp"


@pytest.mark.parametrize(
    ("first_pass", "passes", "on_base"),
    [("auto", "two", True), ("auto", "one", False), ("base", "one", True), ("merged", "two", False)],
)
def test_which_model_routes(first_pass: str, passes: str, on_base: bool) -> None:
    found = values(first_pass=first_pass, passes=passes)
    assert (found.routes_on_base, found.one_pass) == (on_base, passes == "one")


def test_auto_depends_on_the_model() -> None:
    assert (values(images=True).pooling, values().pooling) == (Pooling.TOKENS, Pooling.MEAN)
    assert values(images=True, pooling="cls").pooling is Pooling.CLS
    assert (values(low_rank=True).score, values().score) == (Score.TRAILING_ENERGY, Score.RESIDUAL)
    assert values(low_rank=True, score="gaussian").score is Score.GAUSSIAN


def test_recipes_call_the_trailing_energy_leading() -> None:
    assert values(score="leading").score is Score.TRAILING_ENERGY
    option = METHODS["mass"].option("score")
    assert option is not None
    assert option.choices == ("auto", "residual", "leading", "whitened", "gaussian", "null_space")


def test_what_a_score_implies() -> None:
    assert {s: s.agreement_weight for s in Score if s.agreement_weight != 24} == {Score.TRAILING_ENERGY: 96}
    assert [s for s in Score if s.per_map] == [Score.TRAILING_ENERGY, Score.NULL_SPACE]
    assert [s for s in Score if s.one_scale] == [Score.NULL_SPACE]


def test_the_null_space_ratio_is_of_tokens() -> None:
    assert values(score="null_space").pooling is Pooling.TOKENS
    assert values(score="null_space", pooling="mean").pooling is Pooling.MEAN
    assert values(score="null_space", pooling="paper").pooling is Pooling.MEAN


def test_weighted_takes_residuals_as_they_are() -> None:
    """So no other evidence can be put beside them, and no count limits them."""
    weighted = values(select="weighted")
    assert (weighted.standardised, weighted.head_evidence, weighted.max_tasks) == (False, False, None)
    assert (values().standardised, values(max_tasks=7).max_tasks) == (True, 7)
    assert not values(head_evidence="none").head_evidence


@pytest.mark.parametrize(("count", "first"), [(1, 1), (2, 1), (6, 2), (12, 4), (32, 11)])
def test_one_pass_looks_at_the_first_third(count: int, first: int) -> None:
    one = values(passes="one")
    assert one.layer_rule(count) == LayerRule.parse(f"first:{first}")
    assert values().layer_rule(count).text == "auto"
    assert values(passes="one", routing_layers="all").layer_rule(count).text == "all"


def test_positions() -> None:
    assert values().position("model.layers", 12) is None
    for position in POSITIONS:
        assert values(routing_sites=position).position("model.layers", 12) == position


def test_groups() -> None:
    assert values(batch="batch").batch_is_group
    assert values(group_mean="residuals").mean_of_residuals


def test_a_rule_that_is_none_is_refused() -> None:
    with pytest.raises(RequestError, match="routing_layers cannot be 'depth:2'"):
        values(routing_layers="depth:2")
