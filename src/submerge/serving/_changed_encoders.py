"""Encoders that are no longer what the bank of their folder holds, which a copy of it would have."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from submerge.serving._encoder import Encoder, read_encoder
from submerge.serving._modality_folder import ModalityFolder, open_modality_folder

__all__ = ["changed_encoders"]


def changed_encoders(path: Path, encoders: Iterable[Encoder]) -> list[str]:
    """Return the modalities of a folder's encoders that have other parameters than they were loaded with.

    The dtype may be another one. Each is read again, one after another.
    """
    folder = open_modality_folder(path)
    return [encoder.name for n, encoder in enumerate(encoders) if _differs(folder, n, encoder)]


def _differs(folder: ModalityFolder, number: int, encoder: Encoder) -> bool:
    with folder.reading() as read:
        own = {name: read(stored) for name, stored in folder.modules[folder.owners[number]].items()}
    stored = read_encoder(folder.tasks[number], folder.files(number), own, {}).state_dict()
    return any(not _same(value, stored.get(name)) for name, value in encoder.state_dict().items())


def _same(value: torch.Tensor, stored: torch.Tensor | None) -> bool:
    """Return whether a tensor is what is stored, in its own dtype or by way of a narrower one."""
    if stored is None or stored.shape != value.shape:
        return False
    stored, narrower = stored.to(value.device), (torch.bfloat16, torch.float16)
    ways = [stored, *(stored.to(dtype) for dtype in narrower if stored.is_floating_point())]
    return any(torch.equal(way.to(value.dtype), value) for way in ways)
