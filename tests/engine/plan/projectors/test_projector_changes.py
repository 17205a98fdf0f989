"""What a model is told to have changed, by the first values of its tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from _models import write
from submerge.engine.plan.projectors._projector_changes import projector_changes
from submerge.names import MultimodalParts
from submerge.store import Checkpoint, open_checkpoint

PARTS = MultimodalParts(("tower",), "projector")
PROJECTOR, ENCODER = "projector.weight", "tower.weight"


def opened(folder: Path, dtype: torch.dtype, **changed: float) -> Checkpoint:
    """Return a model of this type, with the first value of some tensors changed; its places are integers."""
    draw = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(4, 3, generator=draw).bfloat16() for name in (PROJECTOR, ENCODER)}
    for name, tensor in tensors.items():
        tensor[0, 0] += changed.get(name.partition(".")[0], 0.0)
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    return open_checkpoint(str(write(folder, tensors | {"tower.places": torch.arange(3)})))


@pytest.mark.parametrize("own", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("theirs", [torch.bfloat16, torch.float32])
def test_values_count_and_not_their_types(tmp_path: Path, own: torch.dtype, theirs: torch.dtype) -> None:
    base = opened(tmp_path / "base", theirs)
    models = {0: opened(tmp_path / "a", own), 1: opened(tmp_path / "b", own, projector=1.0)}
    changes = projector_changes(base, models, PARTS)
    assert (changes.projector, changes.encoder, changes.unfit) == ({1: [PROJECTOR]}, {}, {})
    assert projector_changes(base, {3: opened(tmp_path / "c", own, tower=1.0)}, PARTS).encoder == {
        3: [ENCODER]
    }


def test_integers_that_became_floats_are_changed(tmp_path: Path) -> None:
    base = opened(tmp_path / "base", torch.float32)
    places = {"tower.places": torch.arange(3).float()}
    model = open_checkpoint(str(write(tmp_path / "a", places)))
    assert projector_changes(base, {0: model}, PARTS).encoder == {0: ["tower.places"]}
