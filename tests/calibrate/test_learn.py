"""Coefficients that are learned: the loss, its steps, what is left alone, and what is told."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from _adapters import FIRST, SECOND, Tuned, make_tuned
from calibrate.helpers_null_space import base_model, batch
from submerge import learn_coefficients, null_space_curve, null_space_ratio
from submerge.calibrate import Step

pytest.importorskip("peft")
DATA = {"a0": [batch(0), batch(1, size=2)], "a1": [batch(2)]}
LEARN = {"where_rising": "learn"}
Q0, V0, UP0 = (f"model.layers.0.{m}_proj" for m in ("self_attn.q", "self_attn.v", "mlp.up"))


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    return make_tuned(tmp_path_factory.mktemp("learn"), "llama", FIRST, SECOND)


def learned(tuned: Tuned, **options: Any) -> Any:
    model = options.pop("model", None) or base_model(tuned)
    return learn_coefficients(model, list(tuned.adapters), DATA, **{**LEARN, **options})


def test_no_step_measures(tuned: Tuned) -> None:
    found = learned(tuned, steps=0, initial=0.3)
    matrix = null_space_ratio(base_model(tuned), list(tuned.adapters), DATA, scales=0.3)
    assert torch.equal(torch.isnan(found.matrix.values), torch.isnan(matrix.values))
    assert torch.allclose(found.matrix.values, matrix.values, atol=1e-12, equal_nan=True)
    curve = null_space_curve(base_model(tuned), list(tuned.adapters), DATA)
    assert torch.equal(found.curve.values, curve.values)
    assert {v for own in found.coefficients.values() for v in own.values()} == {0.3}
    assert found.coefficients[V0] == {"a0": 0.3}, "the second adapter does not change it"
    assert len(found.loss) == 1
    first = null_space_ratio(
        base_model(tuned), list(tuned.adapters), {k: v[:1] for k, v in DATA.items()}, scales=0.3
    ).matrix
    assert found.loss[0] == pytest.approx(float((first[0, 0] + first[1, 1]) / 2), abs=1e-12)
    assert found.isotropic["a0"] == pytest.approx((1 - 4 / 16) ** 0.5)
    assert found.seconds_per_step != found.seconds_per_step, "there is none"


def test_steps_lower_the_loss(tuned: Tuned) -> None:
    seen: list[Step] = []
    found = learned(tuned, steps=8, learning_rate=0.02, progress=seen.append)
    assert [(s.number, s.total, s.loss) for s in seen] == [(n, 8, x) for n, x in enumerate(found.loss)]
    assert found.loss[8] < found.loss[0], "both on the first batches"
    assert all(abs(v - 0.4) > 1e-3 for path in (Q0, V0, UP0) for v in found.coefficients[path].values())
    assert found.unreached == tuple(path.replace(".0.", ".1.") for path in (Q0, V0, UP0))[2:]
    assert found.seconds > 8 * found.seconds_per_step > 0
    assert found.peak_memory_bytes > 1 << 20
