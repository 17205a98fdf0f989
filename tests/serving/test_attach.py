"""A bank of a method that is not ours, at a model whose parameters are tied and stored transposed."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from _models import quiet_transformers
from submerge.algebra import Triplets
from submerge.errors import RequestError
from submerge.gating import ConstantAssignment, Gate, Recent
from submerge.serving import Folder, attach_bank

pytest.importorskip("transformers")


@torch.no_grad()
def test_parameters_are_gated_wherever_they_stand() -> None:
    t = quiet_transformers()
    sizes = {"vocab_size": 20, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 8}
    model = t.GPT2LMHeadModel(t.GPT2Config(**sizes, bos_token_id=0, eos_token_id=1)).eval()
    draw = torch.Generator().manual_seed(0)
    table, square = "transformer.wte.weight", "transformer.h.0.attn.c_proj.weight"
    shift = torch.randn(20, 8, generator=draw)
    left, right = torch.randn(8, 2, generator=draw), torch.randn(2, 8, generator=draw)
    wanted = copy.deepcopy(model)
    wanted.get_parameter(table).add_(0.5 * shift)  # which is the head's weight, too
    wanted.get_parameter(square).add_(0.5 * left @ right)

    factors = {square: {0: Triplets(left, torch.ones(2), right)}}
    folder = Folder(
        Path("served"), ({"name": "task"},), {}, "other", factors, {table: {0: shift}}, heads=({},)
    )
    gate, names = Gate(Recent(0)), {table: table, square: square}
    with pytest.raises(RequestError, match="settings of the gate of other lack 'fixed'"):
        attach_bank(model, folder, gate, names, heads=False, partial=False)
    plain = replace(folder, settings={"fixed": "base"})
    gated = attach_bank(model, plain, gate, names, heads=False, partial=False)

    ids = torch.tensor([[3, 14, 15]])
    assert {"transformer.wte", "lm_head"} < gated.modules.keys()
    with gate.over(ConstantAssignment(torch.tensor([0.5]))):
        found = model(ids).logits
    torch.testing.assert_close(found, wanted(ids).logits, atol=1e-5, rtol=1e-5)
