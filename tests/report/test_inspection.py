"""An inspection in few figures and as a picture: both are means of what it holds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from submerge import Inspection, RequestError
from submerge.algebra import KeptEnergy
from submerge.engine import MatrixOverlap, PairOverlap
from submerge.report import by_kind, by_layer, by_model, by_pair, draw_inspection

UP, Q = "layers.{}.mlp.up_proj.weight", "layers.{}.self_attn.q_proj.weight"


def matrix(
    name: str, angles: float, *pairs: tuple[int, int], ranks: tuple[int, ...] = (2, 2, 2)
) -> MatrixOverlap:
    """Return the overlap of three models whose spaces are at one angle; row spaces are equal."""
    kept = KeptEnergy(
        (1, 2, 6),
        (0.5, 0.75, 1.0),
        (0.5, 0.75, 1.0),
        (0.25, 0.5, 1.0),
        ((0.1, 0.2, 1.0),) * 2 + ((0.4, 0.8, 1.0),),
    )
    overlaps = tuple(PairOverlap(i, j, 0.5, (angles, angles), (0.0, 0.0)) for i, j in pairs)
    norms, stable = (tuple(x * bool(r) for r in ranks) for x in (3.0, 1.5))
    return MatrixOverlap(name, (8, 6), ranks, norms, stable, overlaps, kept, 1, 2, 6)


@pytest.fixture
def inspection() -> Inspection:
    all_pairs = ((0, 1), (0, 2), (1, 2))
    matrices = (
        matrix(UP.format(0), math.pi / 3, *all_pairs),
        matrix(Q.format(0), math.pi / 2, (0, 1), ranks=(2, 2, 0)),
        matrix(UP.format(1), 0.0, *all_pairs),
        matrix("head.weight", 0.0, ranks=(0, 0, 1)),
    )
    return Inspection(("a", "b", "c"), matrices)


def test_layers_and_kinds_are_means_over_pairs(inspection: Inspection) -> None:
    layers = {one.label: one for one in by_layer(inspection)}
    assert list(layers) == ["layer 0", "layer 1", "outside of layers"]
    first = layers["layer 0"]
    assert (first.count, first.rows, first.cosine) == (2, 1, 0.5)
    assert first.columns == pytest.approx((3 * 0.5 + 0) / 4)
    assert first.norm == pytest.approx(math.sqrt(5 * 9))
    assert (first.stable_rank, first.half, first.max, first.full) == (1.5, 0.25, 0.5, 1)
    assert layers["outside of layers"].columns is None
    kinds = {one.label: one.count for one in by_kind(inspection)}
    assert kinds == {"mlp.up_proj": 2, "self_attn.q_proj": 1, "head": 1}


def test_models_and_pairs_have_the_matrices_that_they_change(inspection: Inspection) -> None:
    models = {one.label: one for one in by_model(inspection)}
    assert [one.count for one in models.values()] == [3, 3, 3]
    assert (models["c"].max, models["a"].max) == (pytest.approx(0.8), pytest.approx(0.2))
    assert models["c"].columns == pytest.approx((0.5 + 1) / 2)  # of its pairs alone
    pairs = {one.label: one for one in by_pair(inspection)}
    assert {label: one.count for label, one in pairs.items()} == {"a – b": 3, "a – c": 2, "b – c": 2}
    assert pairs["a – b"].columns == pytest.approx((0.5 + 0 + 1) / 3)
    assert pairs["b – c"].max == pytest.approx((0.2 + 0.8) / 2)


def test_the_picture_shows_them(
    inspection: Inspection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    figures: list[Any] = []
    save = Figure.savefig

    def saved(figure: Any, *args: Any, **kwargs: Any) -> None:
        figures.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", saved)
    draw_inspection(inspection, tmp_path / "overlap.svg")
    assert (tmp_path / "overlap.svg").read_text().startswith("<?xml")
    left, right, curves = (axes for axes in figures[0].axes if axes.get_title())
    columns, rows = (np.ma.filled(axes.images[0].get_array(), np.nan) for axes in (left, right))
    np.testing.assert_allclose(columns[:2, :2], [[0.5, 0], [1, np.nan]], atol=1e-12)
    assert np.isnan(columns[2]).all()  # one model alone changes the head
    np.testing.assert_allclose(rows[0, :2], [1, 1])
    assert [text.get_text() for text in left.get_yticklabels()] == ["layer 0", "layer 1", "outside of layers"]
    labels = [line.get_label() for line in curves.get_lines()]
    assert labels[:4] == ["mlp.up_proj", "self_attn.q_proj", "head", "all matrices"]
    mean = curves.get_lines()[3]
    assert np.interp([0, 1 / 6, 2 / 6, 1], *mean.get_data()) == pytest.approx([0, 0.25, 0.5, 1])


def test_another_ending_is_refused(inspection: Inspection, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(RequestError, match="a picture is written as"):
        draw_inspection(inspection, tmp_path / "overlap.pdf")
