"""Modules in which streams of tokens may have parameters of their own, of classes of transformers."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from _models import TEXT, quiet_transformers
from submerge.gating import token_modules

MIXED: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "gpt_oss": (
        {"num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 8},
        {
            "model.layers.0.self_attn": "GptOssAttention is not known to map",
            "model.layers.0.mlp.router": "GptOssTopKRouter is not known to map",
        },
    ),
    "mamba": (
        {"state_size": 4},
        {
            "backbone.layers.0.mixer": "MambaMixer is not known to map",
            "backbone.layers.0.mixer.conv1d": "Conv1d is not known to map",
            "backbone.layers.0.mixer.dt_proj": "another module reads its parameters",
        },
    ),
    "qwen3_next": (
        {
            "layer_types": ["linear_attention", "full_attention"],
            "head_dim": 8,
            "num_experts": 2,
            "num_experts_per_tok": 1,
        }
        | {f"linear_{key}": 8 for key in ("key_head_dim", "value_head_dim")}
        | {"linear_num_value_heads": 4, "linear_num_key_heads": 2},
        {"model.layers.0.linear_attn.norm": "it is given .* and not a row for each token"},
    ),
}


def without_values(kind: str, **more: Any) -> Any:
    transformers = quiet_transformers()
    config = transformers.AutoConfig.for_model(kind, **TEXT | {"pad_token_id": 0} | more)
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)


def with_parameters(model: Any) -> list[str]:
    """Return the paths of the modules that have parameters of their own, but for tables."""
    return [
        path
        for path, module in model.named_modules()
        if [*module.parameters(recurse=False)] and not isinstance(module, torch.nn.Embedding)
    ]


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3_text", "olmo2", "opt", "gpt2", "cohere", "phi"])
def test_all_modules_of_most_classes_map_token_by_token(kind: str) -> None:
    model = without_values(kind)
    paths = with_parameters(model)
    found = token_modules(model, paths)
    assert not found.refused
    heads_first = {path for path in paths if path.endswith(("q_norm", "k_norm"))}
    assert found.heads_first == (heads_first if kind == "gemma3_text" else set())
    assert heads_first or kind not in ("qwen3", "gemma3_text", "olmo2")


@pytest.mark.parametrize("kind", MIXED)
def test_modules_that_mix_tokens_are_refused(kind: str) -> None:
    more, reasons = MIXED[kind]
    model = without_values(kind, **more)
    refused = token_modules(model, ["lm_head", *reasons]).refused
    assert refused.keys() == reasons.keys()
    for path, why in reasons.items():
        assert re.search(why, refused[path])


def test_a_class_that_cannot_be_run_without_values_is_told_by_the_kinds_of_its_modules() -> None:
    model = without_values("llama")
    model.forward = lambda **_: torch.zeros(1, device="meta").item()
    assert token_modules(model, with_parameters(model)).refused == {}
