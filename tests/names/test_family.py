"""Which models are of one kin, by what their configurations say."""

from typing import Any

import pytest

from submerge.names import is_composite, model_types, related

LLAVA = {
    "model_type": "llava",
    "text_config": {"model_type": "llama", "hidden_size": 8},
    "vision_config": {"model_type": "clip_vision_model"},
}


@pytest.mark.parametrize(
    ("config", "types"),
    [
        (None, []),
        ({}, []),
        ({"model_type": "bert"}, ["bert"]),
        (LLAVA, ["llava", "llama", "clip_vision_model"]),
        ({"model_type": "", "text_config": "llama"}, []),
    ],
)
def test_types_are_those_of_the_model_and_its_parts(config: Any, types: list[str]) -> None:
    assert model_types(config) == types


@pytest.mark.parametrize(
    ("own", "base", "kin"),
    [
        (["qwen2"], ["qwen2_vl"], True),
        (["llama"], ["llava", "llama", "clip_vision_model"], True),
        (["clip-vision"], ["clip"], True),
        (["bert"], ["roberta"], False),
        ([], ["bert"], True),
        (["bert"], [], True),
    ],
)
def test_kin_goes_both_ways(own: list[str], base: list[str], kin: bool) -> None:
    assert related(own, base) is related(base, own) is kin


def test_models_of_several_parts() -> None:
    assert is_composite(LLAVA)
    assert not is_composite({"model_type": "bert", "generation_config": {"max_length": 3}})
    assert not is_composite({"quantization_config": None})
    assert not is_composite(None)
