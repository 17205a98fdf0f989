"""Models of transformers without values, and whether what they load is known."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from submerge.names import empty_model, loadable_model, loaded_names

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 8,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def test_what_a_model_loads_is_known() -> None:
    model = loadable_model(CONFIG)
    assert loaded_names(model, ["lm_head.weight", "other"]) == {"lm_head.weight": "lm_head.weight"}


@pytest.mark.parametrize("config", [None, {}, CONFIG | {"architectures": ["OfCustomCode"]}])
def test_a_model_that_transformers_does_not_know_is_none(config: dict[str, Any] | None) -> None:
    assert loadable_model(config) is None


def test_transformers_before_version_5_has_no_steps_of_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    assert loadable_model(CONFIG) is not None
    monkeypatch.setitem(sys.modules, "transformers.core_model_loading", None)
    assert empty_model(CONFIG) is not None
    assert loadable_model(CONFIG) is None
