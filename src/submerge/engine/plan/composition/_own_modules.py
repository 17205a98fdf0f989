"""What of a multimodal model is no language model: its encoder, its projector, and other parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from submerge.errors import Problem, few
from submerge.names import has_layers, is_buffer, is_output_head, layer_of, module_prefix
from submerge.store import Checkpoint, TensorEntry

__all__ = ["ModuleGroup", "module_groups", "own_modules"]


@dataclass
class ModuleGroup:
    """A part of a specialist by its prefix: an encoder, which has layers, or another module."""

    prefix: str
    tensors: list[TensorEntry] = field(default_factory=list)

    @property
    def is_encoder(self) -> bool:
        """Whether it has a stack of layers of its own."""
        return has_layers(entry.name for entry in self.tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(entry.nbytes for entry in self.tensors)


def own_modules(
    model: Checkpoint, base: Checkpoint, where: str
) -> tuple[dict[str, TensorEntry], list[Problem]]:
    """Return the tensors that a specialist has besides the language model, and what is wrong with them.

    `model` has the base's names, so that what stands for nothing in the base is the specialist's own. Of the
    language model's own layers there must be nothing besides: it would be another one.
    """
    language = {model.stored_as(name) for name in model.tensors if name in base.tensors}
    stacks = {place[0] for name in language if (place := layer_of(name))}
    own: dict[str, TensorEntry] = {}
    foreign: list[str] = []
    for name, entry in model.tensors.items():
        if name in base.tensors or name in model.aliases:
            continue
        place = layer_of(name)
        if place is not None and place[0] in stacks:
            foreign += [] if is_buffer(name) else [name]
        elif not is_output_head(name):
            own[name] = entry
    if foreign:
        what = f"its language model has tensors that {base.label} has not: {few(foreign)}"
        return own, [Problem(what, model.label, "give the language model that it was made of as base_model")]
    if not own:
        what = "it has no module besides the language model: no encoder, and no projector"
        hint = "name the folder of a multimodal model; merge language models alone without 'modality'"
        return own, [Problem(what, where or model.label, hint)]
    return own, []


def module_groups(modules: Mapping[str, TensorEntry]) -> list[ModuleGroup]:
    """Return the modules by their prefixes, in the order of the tensors."""
    groups: dict[str, ModuleGroup] = {}
    for name, entry in modules.items():
        prefix = module_prefix(name)
        groups.setdefault(prefix, ModuleGroup(prefix)).tensors.append(entry)
    return list(groups.values())
