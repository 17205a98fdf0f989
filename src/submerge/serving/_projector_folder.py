"""What the folder of a gate of projectors holds: each group's projector, and its prototypes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from submerge.errors import Problem, RequestError, few
from submerge.serving._folder import Folder, bank_names, gate_manifest
from submerge.store import (
    BANK,
    ProjectorSettings,
    projector_bank_problems,
    projector_groups,
    read_projector_key,
)

__all__ = ["ProjectorFolder", "open_projector_folder"]

FIXED = ("module", "pooling")
"""The settings that the bank was made with, so that they cannot change."""


@dataclass(frozen=True)
class ProjectorFolder(Folder):
    """The folder of a model whose tasks have projectors of their own, in K groups.

    Attributes:
        groups: the names of each group's tasks.
        projectors: of each group the parameters, by their names in the checkpoint.
        prototypes: of what the projector is given.
        questions: of the texts, where the bank has them.
        rules: the gate's settings.
    """

    groups: tuple[tuple[str, ...], ...] = ()
    projectors: tuple[dict[str, torch.Tensor], ...] = ()
    prototypes: tuple[torch.Tensor, ...] = ()
    questions: tuple[torch.Tensor, ...] = ()
    rules: ProjectorSettings = dataclasses.field(default_factory=lambda: ProjectorSettings("projector"))

    @property
    def updated(self) -> tuple[str, ...]:
        return tuple(self.projectors[0])

    def local_name(self, name: str) -> str:
        """Return what a parameter is called in the projector."""
        return name.removeprefix(f"{self.rules.module}.")

    def configured(self, given: Mapping[str, Any]) -> ProjectorFolder:
        """Return the folder with a caller's settings; raise `RequestError` for those that cannot change."""
        if fixed := [name for name in given if name in FIXED]:
            what = f"the bank was made with the settings {few(fixed)}"
            raise RequestError(Problem(what, "load", "set them in the recipe, and merge again"))
        rules = ProjectorSettings.from_mapping({**self.rules.to_mapping(), **given})
        if rules.key != "image" and not self.questions:
            what = f"key is {rules.key}, and the bank has no prototypes of texts"
            raise RequestError(Problem(what, str(self.path), "merge again with that key"))
        return dataclasses.replace(self, rules=rules)


def open_projector_folder(path: Path) -> ProjectorFolder:
    """Return what the folder holds; raise `RequestError` where it has another gate, or is damaged."""
    manifest, gate = gate_manifest(path)
    names = bank_names(path, manifest)
    shapes = {name: record.shape for name, record in (manifest.bank or {}).items()}
    if problems := projector_bank_problems(gate, shapes):
        raise RequestError([Problem(what, str(path / BANK), "merge again") for what in problems])
    groups = projector_groups(gate.tasks)
    modules: list[dict[str, torch.Tensor]] = [{} for _ in groups]
    prototypes: dict[int, torch.Tensor] = {}
    questions: dict[int, torch.Tensor] = {}
    with safe_open(path / BANK, framework="pt") as file:
        for name in names:
            key = read_projector_key(name, len(groups))
            if key.is_module:
                modules[key.group][key.name] = file.get_tensor(name)
            else:
                (prototypes if key.is_prototype else questions)[key.group] = file.get_tensor(name)
    return ProjectorFolder(
        path,
        gate.tasks,
        gate.settings,
        gate.method,
        heads=tuple({} for _ in gate.tasks),
        groups=groups,
        projectors=tuple(modules),
        prototypes=_of_all(prototypes, len(groups)),
        questions=_of_all(questions, len(groups)),
        rules=ProjectorSettings.from_mapping(gate.settings),
    )


def _of_all(tensors: Mapping[int, torch.Tensor], count: int) -> tuple[torch.Tensor, ...]:
    """Return the tensors of all groups; none where one lacks them."""
    return tuple(tensors[k] for k in range(count)) if len(tensors) == count else ()
