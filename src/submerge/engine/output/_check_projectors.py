"""Banks of projectors that are incomplete, or of another checkpoint."""

from __future__ import annotations

from submerge.errors import few
from submerge.store import (
    BANK,
    PROJECTOR_GATE,
    Manifest,
    ProjectorSettings,
    projector_bank_problems,
    projector_groups,
    read_projector_key,
)

__all__ = ["damaged_projectors"]


def damaged_projectors(manifest: Manifest) -> list[str]:
    """Return what is wrong with the projectors and prototypes of a folder, as its manifest lists them."""
    gate, bank = manifest.gate, manifest.bank or {}
    if gate is None or gate.method != PROJECTOR_GATE:
        return []
    problems = projector_bank_problems(gate, {name: record.shape for name, record in bank.items()})
    if not problems:
        count = len(projector_groups(gate.tasks))
        keys = {name: read_projector_key(name, count) for name in bank}
        own = {key.name for key in keys.values() if key.is_module}
        module = ProjectorSettings.from_mapping(gate.settings).module
        stored = {name for name in manifest.tensors if name.startswith(f"{module}.")}
        if own != stored:
            problems.append(f"the checkpoint's projector has other parameters: {few(sorted(own ^ stored))}")
        unlike = [
            name
            for name, key in keys.items()
            if key.name in stored and bank[name].shape != manifest.tensors[key.name].shape
        ]
        if unlike:
            problems.append(f"{few(unlike)} have other shapes than in the checkpoint")
    return [f"{BANK}: {what}" for what in problems]
