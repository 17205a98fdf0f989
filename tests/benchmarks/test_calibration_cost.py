"""The benchmark of a step's cost measures the same thing in both ways."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("psutil")
pytest.importorskip("peft")

from benchmarks.calibration_cost import report
from benchmarks.calibration_cost.plain import PlainCalibration
from benchmarks.calibration_cost.subjects import SUBJECTS, Batch

import submerge
from _models import TEXT, quiet_transformers
from submerge.calibrate import NullSpaceRatio, attached, collect
from submerge.store import open_adapter

HOOKS = [f"model.layers.1.{m}_proj" for m in ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o")]


def _lm() -> Any:
    t = quiet_transformers()
    return t.LlamaForCausalLM(t.LlamaConfig(**{**TEXT, "hidden_size": 32, "intermediate_size": 48}))


def _tokens(draw: torch.Generator, size: int) -> Batch:
    return {"input_ids": torch.randint(5, 60, (size, 9), generator=draw)}


SUBJECT = replace(SUBJECTS["smollm"], build=_lm, count=3, inputs=_tokens)


def test_losses_and_gradients_are_those_of_the_plain_implementation(tmp_path: Path) -> None:
    folders, batches = SUBJECT.adapters(tmp_path), SUBJECT.batches(4)
    plain = PlainCalibration(SUBJECT.model(), folders, HOOKS, 1e-3)
    model = SUBJECT.model().requires_grad_(False)
    with attached(model, {str(k): open_adapter(str(one)) for k, one in enumerate(folders)}) as adapters:
        scales = {name: torch.full((3,), 0.4, requires_grad=True) for name in adapters.modules}
        for k, batch in enumerate(batches):
            ratios = {name: NullSpaceRatio([adapters.down[name][k]]) for name in HOOKS}
            with adapters.over(scales):
                collect(model, [batch], ratios)
            found, wanted = torch.stack([r.mean[0] for r in ratios.values()]).mean(), plain.omega(k, batch)
            assert abs(found.item() - wanted.item()) < 1e-6
            (found / 3).backward()
            (wanted / 3).backward()
    for name, own in scales.items():
        gradients = [one.grad for one in plain.branched[name].scales]
        if own.grad is None:
            assert gradients == [None] * 3, "behind every hook"
        else:
            assert torch.allclose(own.grad, torch.stack(gradients), atol=1e-6, rtol=1e-4)


def test_steps_are_those_of_learn_coefficients(tmp_path: Path) -> None:
    folders, batches = SUBJECT.adapters(tmp_path), SUBJECT.batches(4)
    plain = PlainCalibration(SUBJECT.model(), folders, HOOKS, 1e-3)
    losses = [plain.step(batches) for _ in range(3)]
    data = [[batch] for batch in batches]
    found = submerge.learn_coefficients(
        SUBJECT.model(), folders, data, steps=3, hooks=r"layers\.1\.self_attn", where_rising="learn"
    )
    assert found.loss[:3] == pytest.approx(losses, abs=1e-6)


def test_the_page_says_what_must_hold() -> None:
    ways = {
        "plain": {"seconds": 6.0, "before": 100, "peak": 500, "loss": [0.99]},
        "submerge": {"seconds": 1.5, "before": 100, "peak": 350, "loss": [0.99]},
    }
    machine = {
        "cpu": "a",
        "cores": 2,
        "memory_gb": 1,
        "system": "b",
        "python": "3",
        "versions": {"torch": "2"},
    }
    results = {"command": "c", "date": "d", "machine": machine, "size": 2, "steps": 1, "threads": 2}
    page = report.markdown({**results, "subjects": {"x": {"title": "A model", "adapters": 3, "ways": ways}}})
    assert "| A model: time | yes | 4.0× less, to be 3 |" in page
    assert "| A model: memory of the steps | **no** | 1.6× less, to be 2 |" in page
