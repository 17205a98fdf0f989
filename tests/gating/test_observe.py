"""Inputs of modules that are looked at while a model runs, and no longer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from submerge.gating import Observer, StopForward, is_same, observe


class Noted(Observer):
    """Notes all inputs, and ends the pass at the module of a name."""

    def __init__(self, last: str = "") -> None:
        self.last = last
        self.inputs: list[tuple[str, torch.Tensor]] = []

    def on_input(self, name: str, module: nn.Module, x: Any) -> None:
        self.inputs.append((name, x))
        if name == self.last:
            raise StopForward


def model() -> tuple[nn.Sequential, dict[str, nn.Module]]:
    found = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2))
    return found, dict(found.named_children())


def test_inputs_are_those_of_the_modules() -> None:
    sequence, modules = model()
    noted, x = Noted(), torch.randn(2, 4)
    with observe({name: modules[name] for name in ("0", "2")}, noted):
        y = sequence(x)
    assert [name for name, _ in noted.inputs] == ["0", "2"]
    assert torch.equal(noted.inputs[1][1], modules["1"](modules["0"](x)))
    assert torch.equal(sequence(x), y)
    assert len(noted.inputs) == 2, "nothing is looked at any more"


def test_a_pass_ends_after_the_last_module() -> None:
    sequence, modules = model()
    noted, after = Noted("2"), []
    modules["3"].register_forward_pre_hook(lambda *_: after.append(1))
    with observe(modules, noted):
        sequence(torch.ones(2, 4))
        raise AssertionError("the pass goes on")
    assert [name for name, _ in noted.inputs] == ["0", "1", "2"]
    assert not after
    sequence(torch.ones(2, 4))
    assert after


def test_hooks_go_whatever_happens() -> None:
    sequence, modules = model()
    with pytest.raises(RuntimeError), observe(modules, Noted()):
        sequence(torch.ones(2, 3))
    assert not any(module._forward_pre_hooks for module in modules.values())


def test_the_same_tensor_is_the_same_place() -> None:
    x = torch.ones(2, 4)
    assert is_same(x, x.view(2, 4))
    assert not is_same(x, x.clone())
    assert not is_same(x, x[:1])
