"""Adapters in the weights of a model in memory are what PEFT merges."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from _models import quiet_transformers
from store.helpers_adapter import CASES, MODELS, copied, make, same
from submerge.calibrate._applied import apply_adapter, is_scaled
from submerge.store import Adapter, open_adapter, open_model

pytest.importorskip("peft")

SCALED = {"linear", "bias", "tokens", "whole", "embedding", "convolutions", "gpt-oss"}
OTHERS = {"dora", "conv1d-dora", "convolutions-dora"}


@pytest.mark.parametrize("case", sorted(SCALED | OTHERS))
def test_an_adapter_in_the_weights_is_what_peft_merges(case: str, tmp_path: Path) -> None:
    kind, options = CASES[case]
    made = make(kind, tmp_path, **options)
    model = MODELS[kind](quiet_transformers())
    model.load_state_dict(made.base)
    adapter = open_adapter(str(tmp_path))
    assert is_scaled(model, adapter) == (case in SCALED)
    apply_adapter(model, adapter)
    same(copied(model), made.merged)


def test_a_product_in_the_weights(tmp_path: Path) -> None:
    """LoKr of a convolution, from LyCORIS' file."""
    model = MODELS["convolutions"](quiet_transformers())
    before = model.plane.weight.detach().clone()
    whole = {"plane.lokr_w1": torch.ones(1, 1), "plane.lokr_w2": torch.randn(5, 3, 3, 2)}
    factors = {"head.lora_down.weight": torch.ones(2, 7), "head.lora_up.weight": torch.ones(3, 2)}
    save_file(whole | factors, tmp_path / "lora.safetensors")
    adapter = open_model("lora.safetensors", root=tmp_path)
    assert isinstance(adapter, Adapter)
    apply_adapter(model, adapter)
    torch.testing.assert_close(model.plane.weight.detach(), before + whole["plane.lokr_w2"])
