from __future__ import annotations

from typing import Any

import pytest

from submerge.store import with_layers

LLAMA = {
    "num_hidden_layers": 3,
    "layer_types": ["a", "b", "c"],
    "eos_token_id": [1, 2, 3],
    "architectures": [1, 2, 3],
}
WHISPER = {"encoder_layers": 2, "decoder_layers": 2, "num_hidden_layers": 2}
VLM = {"text_config": {"num_hidden_layers": 2}, "vision_config": {"depth": 2}, "num_hidden_layers": 2}


def edited(config: dict[str, Any], stack: str, count: int, layers: list[int]) -> dict[str, Any] | None:
    """Return what changes in a configuration whose layers become these."""
    new = with_layers(config, stack, count, [(config, layer) for layer in layers])
    return None if new is None else {key: value for key, value in new.items() if config.get(key) != value}


@pytest.mark.parametrize(
    ("config", "stack", "layers", "changes"),
    [
        (LLAMA, "model.layers", [2, 0], {"num_hidden_layers": 2, "layer_types": ["c", "a"]}),
        (LLAMA, "model.layers", [0, 1, 2], {}),
        ({"n_layer": 3}, "transformer.h", [0] * 5, {"n_layer": 5}),
        ({"num_hidden_layers": 4}, "model.layers", [0], None),
        ({}, "model.layers", [0], None),
        (
            {"num_hidden_layers": 3, "mlp_only_layers": [0, 2]},
            "model.layers",
            [1, 2, 0, 1],
            {"num_hidden_layers": 4, "mlp_only_layers": [1, 2]},
        ),
        (
            {"num_hidden_layers": 3, "moe_layers": [1, 2]},
            "model.layers",
            [0, 2],
            {"num_hidden_layers": 2, "moe_layers": [1]},
        ),
        ({"num_layers": 3, "num_decoder_layers": 3}, "encoder.block", [0], {"num_layers": 1}),
        ({"num_layers": 3, "num_decoder_layers": 3}, "decoder.block", [0], {"num_decoder_layers": 1}),
    ],
)
def test_layers_of_a_configuration(
    config: dict[str, Any], stack: str, layers: list[int], changes: dict[str, Any] | None
) -> None:
    assert edited(config, stack, 3, layers) == changes


def test_each_part_of_a_model_has_its_own_layers() -> None:
    text = edited(VLM, "model.language_model.layers", 2, [0])
    assert text == {"text_config": {"num_hidden_layers": 1}, "num_hidden_layers": 1}
    assert edited(VLM, "model.visual.blocks", 2, [0, 1, 1]) == {"vision_config": {"depth": 3}}
    assert edited(WHISPER, "model.decoder.layers", 2, [0]) == {"decoder_layers": 1}
    assert edited(WHISPER, "model.encoder.layers", 2, [0]) == {"encoder_layers": 1, "num_hidden_layers": 1}


def test_a_backbone_hands_on_what_it_did() -> None:
    """The last stage stays the last, and one that is not there any more becomes it."""
    stages = ["stem", "stage1", "stage2", "stage3"]
    config = {"num_hidden_layers": 3, "stage_names": stages}
    last = {**config, "out_features": ["stage1", "stage3"], "out_indices": [1, 3]}
    longer = edited(last, "encoder.layer", 3, [0, 1, 2, 2])
    assert longer == {
        "num_hidden_layers": 4,
        "stage_names": [*stages, "stage4"],
        "out_indices": [1, 4],
        "out_features": ["stage1", "stage4"],
    }
    shorter = edited({**config, "out_indices": [-1]}, "encoder.layer", 3, [0])
    assert shorter == {
        "num_hidden_layers": 1,
        "stage_names": ["stem", "stage1"],
        "out_indices": [1],
        "out_features": ["stage1"],
    }


def test_a_value_is_that_of_the_model_that_a_layer_comes_from() -> None:
    other = {"num_hidden_layers": 2, "layer_types": ["x", "y"]}
    new = with_layers(LLAMA, "model.layers", 3, [(LLAMA, 2), (other, 1), (None, 0)])
    assert new is not None
    assert new["layer_types"] == ["c", "y", "a"]
