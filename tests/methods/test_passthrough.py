"""Passthrough copies bit for bit, and scales."""

import torch

from _states import assert_equal
from _support import state
from submerge.engine import merge_state_dicts


def test_passthrough_copies_bit_for_bit() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        model = state(0, dtype=dtype)
        assert_equal(merge_state_dicts([model], method="passthrough"), model)


def test_passthrough_scales() -> None:
    model = state(0)
    scaled = merge_state_dicts([model], method="passthrough", scale=-1.5)
    assert_equal(scaled, {k: v * -1.5 for k, v in model.items()})
