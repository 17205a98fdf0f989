"""The tasks' own modules are found by their parameters."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from submerge.errors import RequestError
from submerge.serving._heads import own_modules


def test_own_modules_are_the_largest_ones() -> None:
    model = nn.ModuleDict({"body": nn.Linear(2, 2), "head": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3))})
    head = {f"head.{n}": p.detach() for n, p in model["head"].named_parameters()}
    assert own_modules(model, [head, head], ("one", "two")) == ["head"]
    bare = {n: p for n, p in head.items() if "1." not in n}
    with pytest.raises(RequestError, match=r"the head of two lacks head\.1\.bias"):
        own_modules(model, [head, bare], ("one", "two"))
    partly = {**head, "body.bias": torch.zeros(2)}
    with pytest.raises(RequestError, match=r"body\.bias stand in modules that all tasks share"):
        own_modules(model, [partly, partly], ("one", "two"))
