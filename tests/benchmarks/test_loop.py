"""The training loop takes the steps of a plain one, and its paces rise and fall as they should."""

from __future__ import annotations

import pytest
import torch
from benchmarks.replication.loop import cosine, linear, minimise, paced, tenths
from torch import nn


def _model() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def test_steps_are_those_of_a_plain_loop() -> None:
    x = torch.randn(12, 4, 3, generator=torch.Generator().manual_seed(0))
    plain, model, wanted = _model(), _model(), []
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.1)
    for step in range(12):
        optimizer.param_groups[0]["lr"] = 0.1 * linear(12, 2)(step)
        loss = plain(x[step]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        optimizer.step()
        wanted.append(loss.detach())
    weights, seen = list(model.parameters()), []
    optimizer = torch.optim.AdamW(weights, lr=0.1)
    losses = minimise(
        lambda step: model(x[step]).square().mean(),
        weights,
        optimizer,
        paced(optimizer, linear(12, 2)),
        range(12),
        clip=0.5,
        after=lambda step, loss: seen.append((step, loss)),
    )
    assert losses == wanted
    assert seen == list(enumerate(losses))
    assert all(map(torch.equal, model.parameters(), plain.parameters()))


@pytest.mark.parametrize("pace", [linear, cosine])
def test_paces_rise_and_fall(pace: object) -> None:
    shares = [pace(20, 4)(step) for step in range(20)]  # type: ignore[operator]
    assert shares[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0], abs=0.1)
    assert shares[4:] == sorted(shares[4:], reverse=True)
    assert 0 < shares[-1] < 0.1
    assert pace(5, 100)(0) == 1, "the warm-up is at most a fifth"  # type: ignore[operator]


def test_a_resumed_schedule_goes_on() -> None:
    pace, weights = linear(10, 2), [nn.Parameter(torch.zeros(1))]
    optimizer = torch.optim.SGD(weights, lr=2.0)
    paced(optimizer, pace, first=6)
    assert optimizer.param_groups[0]["lr"] == 2.0 * pace(6)


def test_losses_are_shown_by_tenths() -> None:
    assert tenths([torch.tensor(float(i)) for i in range(20)]) == [0.5 + 2 * i for i in range(10)]
    assert tenths([torch.tensor(1.0), torch.tensor(3.0)]) == [1.0, 3.0]
