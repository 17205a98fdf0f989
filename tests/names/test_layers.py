from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from submerge.names import depths, layer_of


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.layers.3.mlp.up_proj.weight", ("model.layers", 3)),
        ("model.layers.3.mlp.experts.17.w1", ("model.layers", 3)),
        ("0.auto_model.encoder.layer.1.w", ("", 0)),
        ("lm_head.weight", None),
        ("block3.weight", None),
        ("a.²", None),
        ("a." + "9" * 5000, None),
        ("", None),
    ],
)
def test_layer_of(name: str, place: tuple[str, int] | None) -> None:
    assert layer_of(name) == place


def test_depths() -> None:
    names = [f"model.layers.{index}.w" for index in range(5)] + ["vision.blocks.0.w", "lm_head.weight"]
    found = depths(names)
    assert [found[name] for name in names] == [0, 0.25, 0.5, 0.75, 1, 1.0, 0.0]
    assert list(found) == names
    assert depths([]) == {}


@given(st.lists(st.text(alphabet="ab.019", max_size=10)))
def test_depths_lie_between_zero_and_one(names: list[str]) -> None:
    assert all(0 <= depth <= 1 for depth in depths(names).values())
