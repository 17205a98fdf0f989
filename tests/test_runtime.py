"""The names of earlier versions still work, and say what they are called now."""

import pytest

import submerge
from submerge import gating, routing, runtime, serving


@pytest.mark.parametrize(
    ("name", "now"),
    [
        ("Factors", gating.GatedFactors),
        ("Gate", gating.Gate),
        ("GatedLayer", gating.GatedModule),
        ("Kept", gating.GatedUpdate),
        ("Routing", routing.Routing),
        ("Span", gating.Span),
        ("Whole", gating.GatedDense),
        ("gate_layer", gating.gate_module),
        ("load", serving.load),
    ],
)
def test_each_name_is_an_alias(name: str, now: object) -> None:
    with pytest.warns(
        DeprecationWarning,
        match=rf"submerge\.runtime\.{name} is deprecated: it is called submerge\.\w+\.\w+ now",
    ):
        assert getattr(runtime, name) is now
    assert name in dir(runtime)


def test_other_names_are_none() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        runtime.Nothing  # noqa: B018
    assert submerge.load is serving.load
