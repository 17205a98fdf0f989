"""One model of a recipe, with its parameters and what it says of its task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from submerge.recipe._data_spec import DataSource
from submerge.recipe._rules import Setting, written_settings

__all__ = ["ModelEntry", "same_model"]


def same_model(spec: str) -> str:
    """Return what two specs of one model have in common: the spec without slashes at its end."""
    parts = []
    for part in spec.split("+"):
        path, at, revision = part.partition("@")
        parts.append((path.rstrip("/") or path) + at + revision)
    return "+".join(parts)


@dataclass(frozen=True)
class ModelEntry:
    """One model as the recipe lists it: its spec and parameters.

    A spec is `path` or `org/name@revision`, of a model or of an adapter, or `model+adapter`. `where` is
    its line, such as `recipe.yaml:7`. Where the method has a gate, `name` is what the task is called at run
    time, and `head` names by patterns what of the model is its own. Where weights come from a file, `name`
    is what the model is called there; `data` are the inputs from which they are learned.

    A specialist of a composed model has a `modality`. Where text and the modality's tokens were trained with
    adapters of their own, `language_lora` (which `model` has behind its `+`) and `modality_lora` name them.
    `placeholder` is how a prompt marks an input of the modality. Where projectors are mixed,
    `share_projector` names another task whose projector this one has.
    """

    model: str
    parameters: Mapping[str, Setting]
    where: str
    name: str = ""
    head: tuple[str, ...] = ()
    data: DataSource | None = None
    modality: str = ""
    language_lora: str = ""
    modality_lora: str = ""
    placeholder: str = ""
    share_projector: str = ""

    @property
    def decoupled(self) -> bool:
        """Whether text and the modality's tokens have adapters of their own."""
        return bool(self.language_lora or self.modality_lora)

    @property
    def adapter_name(self) -> str:
        """What coefficients call the model: its `name`, else the last part of its path, or its adapter's."""
        last = self.model.rpartition("+")[2]
        return self.name or PurePath(last.partition("@")[0]).name or last

    def written(self) -> dict[str, Any]:
        """Return the entry as a recipe writes it."""
        return {
            "model": self.model.removesuffix(f"+{self.language_lora}") if self.language_lora else self.model,
            "parameters": written_settings(self.parameters),
            **self._about(),
        }

    def _about(self) -> dict[str, Any]:
        """Return what the entry says of its task, its data and its modality, if anything."""
        own = ("modality", "language_lora", "modality_lora", "placeholder", "share_projector")
        keys = {"name": self.name, "head": list(self.head), "data": self.data}
        keys |= {key: getattr(self, key) for key in own}
        return {key: value for key, value in keys.items() if value}
