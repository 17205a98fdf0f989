"""What a recipe's calibration goes by: the kind of its base, and the hooks of a quarter and a pattern."""

from __future__ import annotations

from dataclasses import fields
from inspect import signature

import pytest
from torch import nn

from submerge.calibrate import choose_hooks, learn_coefficients
from submerge.calibrate._options import CHOICES, LearnOptions
from submerge.calibrate._recipe import _is_of_images
from submerge.errors import RequestError
from submerge.methods import METHODS


def layers(count: int) -> nn.Module:
    blocks = [nn.ModuleDict({"q_proj": nn.Linear(2, 2), "v_proj": nn.Linear(2, 2)}) for _ in range(count)]
    return nn.ModuleDict({"layers": nn.ModuleList(blocks)})


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"model_type": "vit", "image_size": 32}, True),
        ({"model_type": "clip", "vision_config": {}, "text_config": {}}, True),
        ({"model_type": "llava", "vision_config": {}, "text_config": {}}, False),
        ({"model_type": "llama"}, False),
        ({}, False),
    ],
)
def test_a_model_of_images_alone_is_known_by_its_config(config: dict[str, object], found: bool) -> None:
    assert _is_of_images(config) is found


def test_a_pattern_within_the_last_quarter() -> None:
    model = layers(8)
    adapted = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    last = [name for name in adapted if name.startswith(("layers.6", "layers.7"))]
    assert choose_hooks(model, adapted, "last_quarter") == last
    assert choose_hooks(model, adapted, "last_quarter: v_proj|value") == [
        "layers.6.v_proj",
        "layers.7.v_proj",
    ]
    assert choose_hooks(model, adapted, "v_proj") == [f"layers.{i}.v_proj" for i in range(8)]
    with pytest.raises(RequestError, match="no module with an adapter matches 'last_quarter: k_proj'"):
        choose_hooks(model, adapted, "last_quarter: k_proj")


def test_the_options_of_nsc_are_the_arguments_of_learn_coefficients() -> None:
    """The same names, defaults and choices, though neither module may import the other's."""
    nsc, parameters = METHODS["nsc"], signature(learn_coefficients).parameters
    assert nsc.calibration is not None
    settings = nsc.calibration.settings({}, False)
    assert settings == {name: parameters[name].default for name in settings}
    assert {*settings, "seed"} == {field.name for field in fields(LearnOptions)}
    assert {o.name: o.choices for o in nsc.options if o.name in CHOICES} == CHOICES
