"""Rules by which a configuration says which layers differ follow layers that are moved."""

from __future__ import annotations

from typing import Any

import pytest

from submerge.store import with_layers

EVERY_SECOND = {"num_hidden_layers": 4, "decoder_sparse_step": 2, "mlp_only_layers": []}
FIRST_DENSE = {"num_hidden_layers": 4, "first_k_dense_replace": 2}
GEMMA2 = {"num_hidden_layers": 4, "model_type": "gemma2"}
WINDOW = {"num_hidden_layers": 4, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3}
S, F = "sliding_attention", "full_attention"


def changed(config: dict[str, Any], layers: list[int]) -> dict[str, Any]:
    """Return what changes besides the number in a configuration whose layers become these."""
    new = with_layers(config, "model.layers", 4, [(config, layer) for layer in layers])
    assert new is not None
    assert new["num_hidden_layers"] == len(layers)
    return {k: v for k, v in new.items() if config.get(k) != v and k != "num_hidden_layers"}


@pytest.mark.parametrize(
    ("config", "layers", "changes"),
    [
        (EVERY_SECOND, [0, 1, 2, 3, 0, 1], {}),
        (EVERY_SECOND, [0, 1, 3], {"decoder_sparse_step": 1, "mlp_only_layers": [0]}),
        (EVERY_SECOND | {"mlp_only_layers": [1]}, [0, 1, 2, 3, 1], {"mlp_only_layers": [1, 4]}),
        (EVERY_SECOND | {"encoder_sparse_step": 2}, [0, 1, 3], {}),
        (FIRST_DENSE, [0, 1, 2, 3, 3], {}),
        (FIRST_DENSE, [0, 1, 0, 1, 2, 3], {"first_k_dense_replace": 4}),
        (FIRST_DENSE, [2, 3], {"first_k_dense_replace": 0}),
        (FIRST_DENSE, [0, 1], {}),
        (GEMMA2, [0, 1, 2, 3, 2, 3], {}),
        (GEMMA2, [0, 1, 1], {"layer_types": [S, F, F]}),
        (GEMMA2 | {"layer_types": [F, S, S, S]}, [0, 1, 1], {"layer_types": [F, S, S]}),
        (GEMMA2 | {"model_type": "x", "sliding_window_pattern": 3}, [2, 0], {"layer_types": [F, S]}),
        (WINDOW, [2, 3, 3], {"layer_types": [F, S, S]}),
        (WINDOW | {"use_sliding_window": False}, [2, 3, 3], {}),
        ({"num_hidden_layers": 4, "num_nextn_predict_layers": 1}, [0, 1], {"num_nextn_predict_layers": 0}),
    ],
)
def test_rules_say_of_layers_what_they_were(
    config: dict[str, Any], layers: list[int], changes: dict[str, Any]
) -> None:
    assert changed(config, layers) == changes


def test_a_rule_of_another_model_holds_for_its_layers() -> None:
    other = {"decoder_sparse_step": 1, "mlp_only_layers": [3]}
    new = with_layers(EVERY_SECOND, "model.layers", 4, [(EVERY_SECOND, 1), (other, 0), (other, 3)])
    assert new is not None
    assert (new["decoder_sparse_step"], new["mlp_only_layers"]) == (1, [2])


def test_an_order_that_no_number_says_is_refused() -> None:
    with pytest.raises(ValueError, match="first_k_dense_replace says that dense layers come first"):
        changed(FIRST_DENSE, [0, 1, 2, 0])
    assert changed(FIRST_DENSE | {"mlp_layer_types": ["d", "d", "s", "s"]}, [2, 0]) == {
        "mlp_layer_types": ["s", "d"]
    }
