"""The picture of a survey: rows by site or by layer, names cut short, and both kinds of its right half."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from submerge.calibrate import Item
from submerge.report import Survey, draw

pytest.importorskip("matplotlib")
NAMES = ("a", "a-task-with-quite-a-long-name-of-its-own", "nobody")


def surveyed(sites: tuple[str, ...], labelled: bool = True) -> Survey:
    """Return a survey of six inputs of the first two tasks, all given their own."""
    chosen = tuple(NAMES[i % 2] for i in range(6))
    items = tuple(Item(text="x", task=task if labelled else "") for task in chosen)
    scores = torch.randn(len(sites), 6, 3, generator=torch.Generator().manual_seed(0))
    return Survey(NAMES, items, chosen, tuple((t,) for t in chosen), torch.ones(6, 3) / 3, sites, scores)


def drawn(survey: Survey, path: Path) -> str:
    """Return the text of the picture: letters are shapes, and what they spell stands beside as comments."""
    draw(survey, path)
    return path.read_text()


def test_a_picture_of_many_layers_and_of_none(tmp_path: Path) -> None:
    """Many sites are averaged by layer; long names are cut; a task without inputs has no colour."""
    many = surveyed(tuple(f"tower.layers.{i}.map{p}" for i in range(24) for p in range(4)))
    text = drawn(many, tmp_path / "many.svg")
    assert "<!-- layer 23 -->" in text
    assert "map3" not in text
    assert "<!-- a-task-with-quite-a-lon… -->" in text
    none = dataclasses.replace(many, sites=(), scores=many.scores[:0])
    assert "nothing was looked at" in drawn(none, tmp_path / "none.svg")


def test_sites_of_two_stacks_are_told_apart(tmp_path: Path) -> None:
    few = (
        "encoder.layers.0.q",
        "decoder.layers.0.q",
        "decoder.layers.1.a_map_with_quite_a_long_name",
        "head",
    )
    text = drawn(surveyed(few), tmp_path / "few.svg")
    for label in ("encoder.layers layer 0  q", "decoder.layers layer 0  q", "head"):
        assert f"<!-- {label} -->" in text
    assert "<!-- decoder.layers layer 1  …_with_quite_a_long_name -->" in text
    many = surveyed(tuple(f"{s}.layers.{i}.m{p}" for s in "ab" for i in range(9) for p in range(3)))
    assert "<!-- b.layers layer 8 -->" in drawn(many, tmp_path / "many.svg")


@pytest.mark.parametrize("labelled", [True, False])
def test_the_title_says_what_is_counted(tmp_path: Path, labelled: bool) -> None:
    text = drawn(surveyed(("layers.0.q",), labelled), tmp_path / "one.svg")
    assert ("<!-- 100.0% of 6 inputs got their own task -->" in text) == labelled
    assert ("<!-- Chosen tasks of 6 inputs -->" in text) != labelled
    assert f"<!-- How well each task explains {'its own' if labelled else 'the'} inputs -->" in text
