"""What the folder of a gate of projectors holds: each group's projector, and its prototypes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from submerge.algebra import CosineScores, DiscriminantScores, GroupScores, Prototypes
from submerge.errors import Problem, RequestError, few
from submerge.serving._folder import Folder, bank_names, gate_manifest
from submerge.store import (
    BANK,
    PROJECTOR_GROUP_KINDS,
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
        discriminants: of each group its rows of the discriminant, where the bank has them.
        question_discriminants: the same of the texts.
        rules: the gate's settings.
    """

    groups: tuple[tuple[str, ...], ...] = ()
    projectors: tuple[dict[str, torch.Tensor], ...] = ()
    prototypes: tuple[torch.Tensor, ...] = ()
    questions: tuple[torch.Tensor, ...] = ()
    discriminants: tuple[torch.Tensor, ...] = ()
    question_discriminants: tuple[torch.Tensor, ...] = ()
    rules: ProjectorSettings = dataclasses.field(default_factory=lambda: ProjectorSettings("projector"))

    @property
    def updated(self) -> tuple[str, ...]:
        return tuple(self.projectors[0])

    def local_name(self, name: str) -> str:
        """Return what a parameter is called in the projector."""
        return name.removeprefix(f"{self.rules.module}.")

    @property
    def image_scores(self) -> GroupScores:
        """What an input of the projector is compared by."""
        return self._scores(self.prototypes, self.discriminants)

    @property
    def question_scores(self) -> GroupScores | None:
        """What a text is compared by; None where texts do not count."""
        if self.rules.key == "image":
            return None
        return self._scores(self.questions, self.question_discriminants)

    def _scores(
        self, prototypes: tuple[torch.Tensor, ...], discriminants: tuple[torch.Tensor, ...]
    ) -> GroupScores:
        if self.rules.score == "discriminant":
            return DiscriminantScores(discriminants)
        return CosineScores(Prototypes(prototypes), centred=self.rules.centred)

    def configured(self, given: Mapping[str, Any]) -> ProjectorFolder:
        """Return the folder with a caller's settings; raise `RequestError` for those that cannot change."""
        if fixed := [name for name in given if name in FIXED]:
            what = f"the bank was made with the settings {few(fixed)}"
            raise RequestError(Problem(what, "load", "set them in the recipe, and merge again"))
        own = self.rules.to_mapping()
        if given.get("score", self.rules.score) != self.rules.score:
            del own["temperature"]  # which is of the other score
        rules = ProjectorSettings.from_mapping({**own, **given})
        if rules.key != "image" and not self.questions:
            what = f"key is {rules.key}, and the bank has no prototypes of texts"
            raise RequestError(Problem(what, str(self.path), "merge again with that key"))
        if rules.score == "discriminant" and not self.discriminants:
            what = "score is discriminant, and the bank has none"
            raise RequestError(Problem(what, str(self.path), "merge again with that score"))
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
    of_kind: dict[str, dict[int, torch.Tensor]] = {kind: {} for kind in PROJECTOR_GROUP_KINDS}
    with safe_open(path / BANK, framework="pt") as file:
        for name in names:
            key = read_projector_key(name, len(groups))
            if key.is_module:
                modules[key.group][key.name] = file.get_tensor(name)
            else:
                of_kind[key.kind][key.group] = file.get_tensor(name)
    return ProjectorFolder(
        path,
        gate.tasks,
        gate.settings,
        gate.method,
        heads=tuple({} for _ in gate.tasks),
        groups=groups,
        projectors=tuple(modules),
        prototypes=_of_all(of_kind["prototypes"], len(groups)),
        questions=_of_all(of_kind["questions"], len(groups)),
        discriminants=_of_all(of_kind["discriminants"], len(groups)),
        question_discriminants=_of_all(of_kind["question_discriminants"], len(groups)),
        rules=ProjectorSettings.from_mapping(gate.settings),
    )


def _of_all(tensors: Mapping[int, torch.Tensor], count: int) -> tuple[torch.Tensor, ...]:
    """Return the tensors of all groups; none where one lacks them."""
    return tuple(tensors[k] for k in range(count)) if len(tensors) == count else ()
