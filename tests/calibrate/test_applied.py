"""Adapters in the weights of a model in memory are what PEFT merges."""

from __future__ import annotations

from pathlib import Path

import pytest

from _models import quiet_transformers
from store.helpers_adapter import CASES, MODELS, copied, make, same
from submerge.calibrate._applied import apply_adapter, is_scaled
from submerge.store import open_adapter

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
