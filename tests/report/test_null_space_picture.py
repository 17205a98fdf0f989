"""Pictures of ratios, curves and calibrations: what they hold is what the figures say."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import submerge
from _adapters import FIRST, SECOND, make_tuned
from calibrate.helpers_null_space import base_model, batch
from submerge import NullSpaceCurve, NullSpaceMatrix, RequestError
from submerge.report import check_picture, draw_calibration, draw_curve, draw_null_space

pytest.importorskip("matplotlib")
Draw = Callable[..., Any]
NAN = math.nan


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Draw:
    """A function that draws a picture by a public function, and returns its figure.

    Most of the time goes into the file, which is not written where another test writes one like it.
    """
    from matplotlib.figure import Figure

    figures: list[Any] = []
    save, path = Figure.savefig, tmp_path / "picture.svg"

    def draw(how: Callable[..., None], what: Any, *, written: bool = True) -> Any:
        def saved(figure: Any, *args: Any, **kwargs: Any) -> None:
            figures.append(figure)
            if written:
                save(figure, *args, **kwargs)

        monkeypatch.setattr(Figure, "savefig", saved)
        how(what, path)
        assert not written or path.read_text().startswith("<?xml")
        return figures[-1]

    return draw


def cells(axes: Any) -> list[list[float]]:
    """Return what a heat map shows."""
    return [[float(value) for value in row] for row in axes.images[0].get_array().filled(NAN)]


def texts(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.texts]


def labels(ticks: Any) -> list[str]:
    return [tick.get_text() for tick in ticks]


def close(found: list[list[float]], plain: list[list[float]]) -> bool:
    return bool(np.allclose(found, plain, atol=1e-4, equal_nan=True))


def matrix(
    modules: tuple[str, ...], values: list[Any], data: tuple[str, ...] = ("a", "b")
) -> NullSpaceMatrix:
    ratios = torch.tensor(values, dtype=torch.float64)
    level = torch.full((len(modules), ratios.shape[2]), 0.98, dtype=torch.float64)
    level[ratios.isnan().all(1)] = NAN
    names = ("a", "b", "c")[: ratios.shape[2]]
    return NullSpaceMatrix(data, names, modules, ratios, level, (1,) * len(data))


def test_the_heat_map_is_relative_to_the_level_in_thousandths(drawn: Draw) -> None:
    """The nearest adapter of each row is framed; an adapter without a ratio is left grey."""
    figure = drawn(draw_null_space, matrix(("h.0.q",), [[[0.97, 0.981, NAN], [0.99, 0.979, NAN]]]))
    axes = figure.axes[0]
    assert close(cells(axes), [[-10, 1, NAN], [10, -1, NAN]])
    assert texts(axes) == ["-10.0", "1.0", "", "10.0", "-1.0", ""]
    assert [patch.get_xy() for patch in axes.patches] == [(-0.5, -0.5), (0.5, 0.5)]
    assert labels(axes.get_xticklabels()) == ["a", "b", "c"]
    assert axes.get_title() == "2 of 2 data sets are nearest to their own adapter (framed)"
    assert len(figure.axes) == 2, "one module: the matrix and its colours"


def test_each_layer_has_a_panel_with_the_mean_of_its_modules(drawn: Draw) -> None:
    """An adapter that lacks a module has the mean of the others; modules outside of layers have no panel."""
    values = [
        [[0.97, 0.98], [0.98, 0.97]],
        [[0.99, NAN], [0.98, NAN]],
        [[0.96, 0.98], [0.98, 0.99]],
        [[0.98, 0.98], [0.98, 0.98]],
    ]
    figure = drawn(draw_null_space, matrix(("h.0.q", "h.0.v", "h.1.q", "pooler"), values))
    panels = {axes.get_title(): cells(axes) for axes in figure.axes if axes.get_title().startswith("layer")}
    assert close(panels["layer 0"], [[0, 0], [0, -10]])
    assert close(panels["layer 1"], [[-20, 0], [0, 10]])
    assert len(panels) == 2
    assert close(cells(figure.axes[0]), [[-5, 0], [0, 0]])


def test_layers_of_two_stacks_are_told_apart_and_many_columns_have_no_numbers(drawn: Draw) -> None:
    stacks = ("vision_model.encoder.layers", "a_text_model.with_a_long.name.layers")
    modules = tuple(f"{stack}.{number}.q" for stack in stacks for number in range(2))
    ratios = torch.full((4, 1, 13), 0.97)
    names = tuple(map(str, range(13)))
    found = NullSpaceMatrix(("other",), names, modules, ratios, torch.full((4, 13), 0.98), (1,))
    figure = drawn(draw_null_space, found)
    titles = [axes.get_title() for axes in figure.axes]
    assert "…on_model.encoder.layers\nlayer 1" in titles
    assert "…with_a_long.name.layers\nlayer 0" in titles
    assert texts(figure.axes[0]) == []
    assert "(framed: least)" in figure.axes[0].get_title(), "the data are no adapter's own"


def test_curves_start_at_zero_and_those_that_do_not_fall_are_dashed(drawn: Draw) -> None:
    values = torch.tensor([[0.98, 0.97, 0.96], [0.97, 0.969, 0.971]], dtype=torch.float64)
    axes = drawn(draw_curve, NullSpaceCurve(("a", "b"), (0.0, 0.5, 1.0), ("h.0.q",), values)).axes[0]
    falling, other = axes.lines[:2]
    assert close([falling.get_ydata()], [[0, -10, -20]])
    assert close([other.get_ydata()], [[0, -1, 1]])
    assert list(falling.get_xdata()) == [0, 0.5, 1]
    assert (falling.get_linestyle(), other.get_linestyle()) == ("-", "--")
    assert labels(axes.get_legend().get_texts()) == ["a", "b (does not fall)"]
    assert axes.get_title() == "ω falls with λ for 1 of 2 adapters"


def calibrated(**changes: Any) -> dict[str, Any]:
    """Return a calibration of two adapters as its file has it; the second lacks a module."""
    return {
        "loss": [0.98, 0.97, 0.975],
        "coefficients": {
            "h.0.q": {"a": 0.5, "b": 0.3},
            "h.0.v": {"a": [0.2, 0.4]},
            "h.1.q": {"a": 0.4, "b": 0.4},
        },
        "initial": 0.4,
        "hooks": ["h.0.v", "h.1.q"],
        "ratios": {"a": {"a": 0.965, "b": 0.99}, "b": {"a": 0.98, "b": 0.97}},
        "ratios_by_module": {
            "h.0.v": {"a": {"a": 0.96, "b": None}, "b": {"a": 0.98, "b": None}},
            "h.1.q": {"a": {"a": 0.97, "b": 0.99}, "b": {"a": 0.98, "b": 0.97}},
        },
        "isotropic": {"a": 0.98, "b": 0.98},
        "curve": {"scales": [0.0, 1.0], "values": {"a": [0.98, 0.97], "b": [0.97, 0.98]}},
        "unreached": ["h.1.q"],
        "kept": ["b"],
        **changes,
    }


def test_a_calibration_shows_ratios_coefficients_curves_and_loss(drawn: Draw) -> None:
    """Units have their mean, kept adapters a mark, and unreached modules grey names."""
    figure = drawn(draw_calibration, calibrated())
    ratios, coefficients = (axes for axes in figure.axes if axes.get_xlabel() == "adapter")
    assert close(cells(ratios), [[-15, 10], [0, -10]])
    assert close(cells(coefficients), [[0.5, 0.3], [0.3, NAN], [0.4, 0.4]])
    rows = coefficients.get_yticklabels()
    assert labels(rows) == ["layer 0  q", "layer 0  v", "layer 1  q"]
    assert [row.get_color() == "#999999" for row in rows] == [False, False, True]
    assert labels(coefficients.get_xticklabels()) == ["a", "b (kept)"]
    (loss,) = (axes for axes in figure.axes if axes.get_xlabel() == "step")
    assert list(loss.lines[0].get_ydata()) == [0.98, 0.97, 0.975]
    assert loss.get_title() == "Loss: 0.98000 → 0.97500"
    (curves,) = (axes for axes in figure.axes if axes.get_legend())
    assert curves.get_title() == "ω falls with λ for 1 of 2 adapters"
    assert {"layer 0", "layer 1"} <= {axes.get_title() for axes in figure.axes}


def test_a_calibration_and_its_file_are_drawn_alike(drawn: Draw, tmp_path: Path) -> None:
    """Of adapters of unequal ranks, of which one lacks a module, over modules of one width."""
    pytest.importorskip("peft")
    tuned = make_tuned(tmp_path, "llama", FIRST, SECOND)
    model, data = base_model(tuned), [[batch(0)], [batch(1)]]
    found = submerge.learn_coefficients(model, list(tuned.adapters), data, steps=2, hooks="q_proj|v_proj")
    found.save(tmp_path / "coefficients.json")
    read = json.loads((tmp_path / "coefficients.json").read_text())
    one, other = (drawn(draw_calibration, what, written=False).axes for what in (found, read))
    assert [axes.get_title() for axes in one] == [axes.get_title() for axes in other]
    for axes, same in zip(one, other, strict=True):
        if axes.images:
            assert close(cells(axes), cells(same))


def test_coefficients_of_many_modules_are_averaged_by_layer(drawn: Draw) -> None:
    many = {f"h.{i}.{m}": {"a": 0.4 + 0.1 * (m == "q"), "b": 0.4} for i in range(20) for m in "qv"}
    figure = drawn(draw_calibration, calibrated(coefficients=many, unreached=["h.19.v"]))
    _, coefficients = (axes for axes in figure.axes if axes.get_xlabel() == "adapter")
    assert close(cells(coefficients), [[0.45, 0.4]] * 20)
    assert "grey" not in coefficients.get_title(), "the layer's other module was reached"


def test_nothing_was_learned_in_no_steps(drawn: Draw) -> None:
    still = {"h.0.q": {"a": 0.4, "b": 0.4}}
    figure = drawn(draw_calibration, calibrated(loss=[0.98], coefficients=still, unreached=[]))
    assert "Loss: 0.98000 → 0.98000" in [axes.get_title() for axes in figure.axes]


@pytest.mark.parametrize("name", ["picture.pdf", "picture", "picture.json"])
def test_other_endings_are_refused_before_anything_is_drawn(tmp_path: Path, name: str) -> None:
    with pytest.raises(RequestError, match=r"written as \.png or \.svg"):
        draw_calibration(calibrated(), tmp_path / name)
    with pytest.raises(RequestError, match=r"written as \.png or \.svg"):
        check_picture(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_matplotlib_is_asked_for_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(RequestError, match="pip install matplotlib"):
        draw_calibration(calibrated(), tmp_path / "picture.png")
