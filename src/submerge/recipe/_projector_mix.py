"""How the outputs of the tasks' projectors are mixed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from submerge.store import ProjectorSettings

__all__ = ["ProjectorMix", "projector_options"]


def projector_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `store.ProjectorSettings` but for the module, which no recipe says.

    Score, key and temperature are None where they are not given: they depend on the tasks' images.
    """
    settings = asdict(ProjectorSettings.from_mapping({**given, "module": "projector"}))
    left_open = {name: given.get(name) for name in ("temperature", "key", "score")}
    return {name: value for name, value in (settings | left_open).items() if name != "module"}


@dataclass(frozen=True)
class ProjectorMix:
    """How the outputs of the tasks' projectors are mixed (CPM); the mapping `projectors` of a recipe.

    `options` are the fields of `store.ProjectorSettings` but for the module, and `prototypes` is the
    most that a task has.
    """

    options: Mapping[str, Any] = field(default_factory=lambda: projector_options({}))
    prototypes: int = 1

    def settings(
        self, module: str, score: str = "prototypes", key: str = ProjectorSettings.key
    ) -> ProjectorSettings:
        """Return the settings of the gate for the projector at this path.

        `score` and `key` are what they are where the recipe says nothing of them.
        """
        chosen = {"score": self.options["score"] or score, "key": self.options["key"] or key}
        return ProjectorSettings(module, **{**self.options, **chosen})

    def written(self) -> dict[str, Any]:
        """Return the mapping that a recipe has."""
        given = {name: value for name, value in self.options.items() if value is not None}
        return {"mix": "prototypes", **given, "prototypes": self.prototypes}
