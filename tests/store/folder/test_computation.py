"""What configurations say otherwise of how a model computes, and what is only said otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import submerge
from store.helpers_store import write_single
from submerge.store import unlike_computation

OLD = {"rope_theta": 10000.0, "rope_scaling": None, "hidden_act": "silu", "rms_norm_eps": 1e-5}
NEW = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000},
    "hidden_act": "swish",
    "rms_norm_eps": 0.00001,
    "head_dim": 64,
    "max_position_embeddings": 99,
}
LONG = {"rope_theta": 1e6, "rope_scaling": {"type": "yarn", "factor": 4.0}}


@pytest.mark.parametrize(
    ("own", "base", "expected"),
    [
        (OLD, NEW, {}),
        (OLD, {}, {}),
        (None, NEW, {}),
        (OLD, OLD | {"rms_norm_eps": 1e-6}, {"rms_norm_eps": (1e-5, 1e-6)}),
        (LONG, NEW, {"rope_theta": (1e6, 10000), "rope_type": ("yarn", "default")}),
        (
            {"rope_parameters": LONG["rope_scaling"] | {"rope_theta": 1e6}},
            LONG | {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
            {"rope_factor": (4.0, 2.0)},
        ),
        (
            {"text_config": OLD | {"num_attention_heads": 4}},
            {"num_attention_heads": 8},
            {"num_attention_heads": (4, 8)},
        ),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, OLD, {}),
        (
            {"rope_theta": 1e6, "rope_local_base_freq": 1e4},
            {"rope_parameters": {k: {"rope_theta": 1e4} for k in ("full_attention", "sliding_attention")}},
            {"full_attention.rope_theta": (1e6, 1e4)},
        ),
        (
            LONG | {"rope_scaling": {"type": "longrope", "long_factor": [1.0, 2.0]}},
            LONG | {"rope_scaling": {"type": "longrope", "long_factor": [1.0, 3.0]}},
            {"rope_long_factor": ([1.0, 2.0], [1.0, 3.0])},
        ),
        (
            {"vision_config": {"hidden_act": "gelu", "layer_norm_eps": 1e-5}},
            {"vision_config": {"hidden_act": "quick_gelu"}},
            {"vision_config.hidden_act": ("gelu", "quick_gelu")},
        ),
        (
            {"thinker_config": {"audio_config": {"activation_function": "gelu"}}},
            {"thinker_config": {"audio_config": {"activation_function": "relu"}}},
            {"thinker_config.audio_config.activation_function": ("gelu", "relu")},
        ),
        ({"use_sliding_window": False, "sliding_window": 9}, {"sliding_window": 4}, {}),
        ({"sliding_window": 9}, {"sliding_window": 4}, {"sliding_window": (9, 4)}),
        ({"num_attention_heads": [1, 2]}, {"num_attention_heads": 2}, {}),
    ],
)
def test_what_differs(own: dict[str, Any] | None, base: dict[str, Any], expected: dict[str, Any]) -> None:
    assert unlike_computation(own, base) == expected


def test_a_plan_warns_of_another_computation(tmp_path: Path) -> None:
    """As of fine-tunes for longer texts, whose rotary positions turn otherwise than the base's."""
    for seed, (name, config) in enumerate({"base": OLD, "same": NEW, "long": LONG}.items()):
        write_single(tmp_path / name, seed, {"model_type": "llama"} | config)
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": str(tmp_path / "base"),
        "models": [str(tmp_path / "same"), str(tmp_path / "long")],
        "parameters": {"weight": 0.5},
    }
    (warning,) = submerge.plan(recipe).warnings
    assert warning == (
        f"{tmp_path / 'long'}: its weights were trained with rope_theta 1000000.0 and not 10000.0, "
        f"rope_type yarn and not default, as its config says; the output computes as {tmp_path / 'base'}"
    )
