"""Which coefficients are one, and which of them are left alone."""

from __future__ import annotations

import pytest
import torch

from submerge.calibrate._parametrisation import PARAMETRISATIONS, Parametrisation

UNITS = {"a.0.q": {0: 2, 1: 3}, "a.0.up": {1: 3}, "a.1.q": {0: 2, 1: 1}}
NAMES = ("x", "y")


def made(kind: str, frozen: tuple[int, ...] = ()) -> Parametrisation:
    return Parametrisation(UNITS, kind, 0.4, frozen)


@pytest.mark.parametrize(
    ("kind", "count"), [("module", 5), ("type", 3), ("adapter", 2), ("unit", 2 + 3 + 3 + 2 + 1)]
)
def test_how_many_there_are(kind: str, count: int) -> None:
    assert kind in PARAMETRISATIONS
    assert sum(parameter.numel() for parameter in made(kind).learned) == count


@pytest.mark.parametrize("kind", ["module", "type", "adapter"])
def test_scales_are_0_where_an_adapter_changes_nothing(kind: str) -> None:
    scales = made(kind).scales(2)
    assert {path: row.tolist() for path, row in scales.items()} == {
        "a.0.q": [0.4, 0.4],
        "a.0.up": [0.0, 0.4],
        "a.1.q": [0.4, 0.4],
    }


def test_units_have_scales_and_values_of_their_own() -> None:
    coefficients = made("unit")
    assert {k: len(own) for k, own in coefficients.scales(2)["a.0.q"].items()} == {0: 2, 1: 3}
    assert coefficients.values(NAMES) == {
        "a.0.q": {"x": [0.4, 0.4], "y": [0.4, 0.4, 0.4]},
        "a.0.up": {"y": [0.4, 0.4, 0.4]},
        "a.1.q": {"x": [0.4, 0.4], "y": 0.4},
    }


def test_frozen_adapters_are_no_variables_and_not_unreached() -> None:
    coefficients = made("module", frozen=(1,))
    assert len(coefficients.learned) == 2
    assert coefficients.unreached == ["a.0.q", "a.1.q"]
    coefficients.scales(2)["a.0.q"].sum().backward()
    coefficients.note_reached()
    assert coefficients.unreached == ["a.1.q"]


def test_types_are_reached_together() -> None:
    coefficients = made("type")
    coefficients.scales(2)["a.0.q"].sum().backward()
    coefficients.note_reached()
    assert coefficients.unreached == ["a.0.up"]


@pytest.mark.parametrize("kind", PARAMETRISATIONS)
def test_the_distance_is_a_mean_over_what_was_reached(kind: str) -> None:
    coefficients = made(kind)
    assert coefficients.distance().item() == 0
    row = coefficients.scales(2)["a.0.q"]
    total = row.sum() if isinstance(row, torch.Tensor) else sum(one.sum() for one in row.values())
    total.backward()
    coefficients.note_reached()
    with torch.no_grad():
        for parameter in coefficients.learned:
            parameter += 0.5
    assert coefficients.distance().item() == pytest.approx(0.25)
    coefficients.clamp_(0.0, 0.6)
    assert coefficients.distance().item() == pytest.approx(0.04)
