"""Passes in which reducers take in the inputs of modules: which rows, and how far a pass goes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from _models import CONFIGS, inputs, quiet_transformers
from calibrate.helpers_null_space import all_inputs, batch
from submerge.calibrate import Reducer, collect

pytest.importorskip("transformers")
NAMES = [f"model.layers.{i}.{m}_proj" for i in (0, 1) for m in ("self_attn.q", "self_attn.v", "mlp.up")]


class Rows(Reducer):
    """Holds all rows."""

    def __init__(self) -> None:
        self.rows: list[torch.Tensor] = []

    def update(self, rows: torch.Tensor) -> None:
        self.rows.append(rows)


def model(kind: str = "llama", dtype: torch.dtype = torch.float32) -> Any:
    t = quiet_transformers()
    torch.manual_seed(0)
    name, config = CONFIGS[kind]
    return getattr(t, name)(config(t)).to(dtype).eval().requires_grad_(False)


def test_rows_are_those_of_a_full_pass_without_padding() -> None:
    lm, batches = model(), [batch(0), batch(1, size=2, length=5)]
    reducers = {name: Rows() for name in NAMES}
    collect(lm, batches, reducers)
    for number, one in enumerate(batches):
        for name, rows in all_inputs(lm, NAMES, one).items():
            assert torch.equal(reducers[name].rows[number], rows)
            assert len(rows) == one["attention_mask"].sum()


def test_a_pass_ends_after_the_last_module() -> None:
    lm, ran = model(), []
    for name in ("model.layers.1.mlp.down_proj", "model.norm", "lm_head"):
        lm.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: ran.append(name))
    collect(lm, [batch(0)], {name: Rows() for name in NAMES})
    assert not ran
    collect(lm, [batch(0)], {**{name: Rows() for name in NAMES}, "lm_head": Rows()})
    assert ran == ["model.layers.1.mlp.down_proj", "model.norm", "lm_head"]


def test_padding_changes_no_row() -> None:
    """On either side: a sample's rows are those that it has alone."""
    lm, (a, b) = model(), (torch.arange(5, 12), torch.arange(20, 24))
    alone = Rows()
    collect(lm, [{"input_ids": ids.unsqueeze(0)} for ids in (a, b)], {NAMES[4]: alone})
    for left in (True, False):
        pad = torch.zeros(3, dtype=torch.long)
        ids = torch.stack([a, torch.cat([pad, b] if left else [b, pad])])
        found = Rows()
        collect(lm, [{"input_ids": ids, "attention_mask": (ids > 0).long()}], {NAMES[4]: found})
        assert (found.rows[0] - torch.cat(alone.rows)).abs().max() < 1e-5


def test_a_module_that_runs_twice_counts_once() -> None:
    t = quiet_transformers()
    config = t.AlbertConfig(
        vocab_size=64, embedding_size=8, hidden_size=16, intermediate_size=24, num_hidden_layers=3,
        num_attention_heads=2,
    )  # fmt: skip
    albert, found = t.AlbertModel(config).eval(), Rows()
    name = next(n for n, m in albert.named_modules() if n.endswith("query") or n.endswith("q_proj"))
    collect(albert, [batch(0)], {name: found, "pooler": Rows()})
    assert [len(rows) for rows in found.rows] == [int(batch(0)["attention_mask"].sum())]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_images_come_in_the_models_dtype(dtype: torch.dtype) -> None:
    vit, found = model("vit", dtype), Rows()
    name = [n for n, m in vit.named_modules() if isinstance(m, torch.nn.Linear)][-2]
    steps: list[int] = []
    collect(vit, [inputs("vit")] * 2, {name: found}, progress=steps.append)
    assert {rows.dtype for rows in found.rows} == {dtype}
    assert [len(rows) for rows in found.rows] == [5, 5]
    assert steps == [1, 2]
