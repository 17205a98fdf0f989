from __future__ import annotations

import pytest

from submerge.names import module_of_each

LLAVA = ["language_model.lm_head.weight", "language_model.model.layers.0.q", "vision_tower.layers.0.q"]
QWEN = [
    "lm_head.weight",
    "model.language_model.layers.0.q",
    "model.visual.blocks.0.q",
    "model.visual.merger.mlp.0.w",
]
T5 = ["shared.weight", "encoder.block.0.q", "decoder.block.0.q", "lm_head.weight"]


@pytest.mark.parametrize(
    ("names", "modules", "owners"),
    [
        (LLAVA, [""], ["", "", ""]),
        (LLAVA, ["text_decoder", "vision_tower"], ["text_decoder", "text_decoder", "vision_tower"]),
        (LLAVA, ["vision_tower"], [None, None, "vision_tower"]),
        (
            QWEN,
            ["vision_tower", "language_model"],
            ["language_model", "language_model", "vision_tower", "vision_tower"],
        ),
        (
            QWEN,
            ["text_decoder", "vision_model", "multi_modal_projector"],
            ["text_decoder", "text_decoder", "vision_model", "multi_modal_projector"],
        ),
        (T5, ["encoder", "decoder", "shared"], ["shared", "encoder", "decoder", "shared"]),
        (["encoderx.w", "my.encoder.w"], ["encoder"], [None, "encoder"]),
    ],
)
def test_a_tensor_is_in_the_module_of_its_longest_path(
    names: list[str], modules: list[str], owners: list[str | None]
) -> None:
    assert list(module_of_each(names, modules).values()) == owners
