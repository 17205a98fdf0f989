"""Values that a merge does not change are copied, with the bytes and records that arithmetic would give."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import submerge
from _models import ROOM, contents, state, write
from submerge.engine import TensorPlan
from submerge.engine.plan import computed_elements

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
KINDS: dict[str, dict[str, Any]] = {
    "passthrough": {"merge_method": "passthrough"},
    "linear": {"merge_method": "linear", "parameters": {"weight": 3.0}},
}


def special(dtype: torch.dtype) -> torch.Tensor:
    """Return zeros of both signs, and numbers at the ends of a type's range."""
    limits = torch.finfo(dtype)
    return torch.tensor(
        [0.0, -0.0, limits.max, limits.min, limits.tiny, limits.smallest_normal / 4], dtype=dtype
    )


@pytest.mark.parametrize("with_nan", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_copy_has_the_bytes_of_the_arithmetic(
    dtype: torch.dtype, kind: str, with_nan: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = state(dtype=dtype) | {"special": special(dtype)}
    if with_nan:
        tensors["model.norm.weight"][3:6] = torch.tensor([torch.nan, -torch.nan, torch.inf], dtype=dtype)
    recipe = KINDS[kind] | {"models": [{"model": str(write(tmp_path / "model", tensors))}]}
    settings = replace(ROOM, allow_nonfinite=with_nan)
    planned = submerge.plan(recipe, settings).tensors
    assert all(tensor.keeps_values for tensor in planned)
    copied = contents(submerge.merge(recipe, tmp_path / "copied" / "out", settings=settings).out)
    monkeypatch.setattr(TensorPlan, "keeps_values", property(lambda tensor: False))
    assert contents(submerge.merge(recipe, tmp_path / "computed" / "out", settings=settings).out) == copied


def test_what_is_changed_is_not_copied(tmp_path: Path) -> None:
    model = str(write(tmp_path / "model", state()))
    for more in ({"parameters": {"scale": 0.5}}, {"dtype": "bfloat16"}):
        recipe = {"merge_method": "passthrough", "models": [{"model": model}], **more}
        assert not any(tensor.keeps_values for tensor in submerge.plan(recipe, ROOM).tensors)


def test_copies_are_not_worth_compiling_for(tmp_path: Path) -> None:
    model = str(write(tmp_path / "model", state()))
    plan = submerge.plan({"merge_method": "passthrough", "models": [{"model": model}]}, ROOM)
    assert computed_elements(plan.tensors) == 0
    assert computed_elements([replace(plan.tensors[0], dtype="F16")]) == plan.tensors[0].numel
