"""Folders of models with several projectors, written by hand, and what they must answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from torch.func import functional_call

from _models import read
from serving.helpers_composed import Specialist, normal
from submerge.algebra import Prototypes
from submerge.store import (
    PROJECTOR_GATE,
    GateRecord,
    Manifest,
    ProjectorSettings,
    TensorRecord,
    byte_view,
    dtype_named,
    hasher,
    module_key,
    prototype_key,
    question_key,
)

PATH = "multi_modal_projector"
TASKS = ("birds", "cars", "texts")


def projector_sets(one: Specialist, count: int) -> list[dict[str, torch.Tensor]]:
    """Return random parameters of a specialist's projector, by their names in its files."""
    own = {name: x for name, x in one.modules().items() if name.startswith(PATH)}
    return [
        {name: 0.5 * normal(100 * k + n, *x.shape) for n, (name, x) in enumerate(sorted(own.items()))}
        for k in range(count)
    ]


def given_to_projector(one: Specialist, inputs: Mapping[str, torch.Tensor], ids: torch.Tensor) -> Any:
    """Return what a specialist's own projector is given."""
    seen: list[torch.Tensor] = []
    module = one.model.get_submodule(f"model.{PATH}")
    hook = module.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    one.model(input_ids=ids, attention_mask=torch.ones_like(ids), **inputs)
    hook.remove()
    return seen[0]


def write_projectors(
    folder: Path,
    one: Specialist,
    sets: Sequence[Mapping[str, torch.Tensor]],
    prototypes: Sequence[torch.Tensor],
    questions: Sequence[torch.Tensor] = (),
    groups: Sequence[int] = (),
    **settings: Any,
) -> Path:
    """Write a folder: the specialist with the mean of the sets as its projector, and its bank."""
    one.model.save_pretrained(folder)
    weights = read(folder)
    weights |= {name: torch.stack([own[name] for own in sets]).mean(0) for name in sets[0]}
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    bank = {module_key(k, name): x for k, own in enumerate(sets) for name, x in own.items()}
    bank |= {prototype_key(k): torch.atleast_2d(x) for k, x in enumerate(prototypes)}
    bank |= {question_key(k): torch.atleast_2d(x) for k, x in enumerate(questions)}
    save_file({name: x.contiguous().clone() for name, x in bank.items()}, folder / "bank.safetensors")
    groups = groups or range(len(sets))
    tasks = tuple({"name": name, "group": k} for name, k in zip(TASKS, groups, strict=False))
    gate = GateRecord(PROJECTOR_GATE, tasks, ProjectorSettings(PATH, **settings).to_mapping())
    records = {name: _record(x) for name, x in bank.items()}
    written = {name: _record(x, "model.safetensors", "merge") for name, x in weights.items()}
    manifest = Manifest("0", {"merge_method": "many"}, (), (), {}, {}, written, gate=gate, bank=records)
    (folder / "submerge.json").write_text(manifest.text)
    return folder


def _record(x: torch.Tensor, *where: str) -> TensorRecord:
    digest = hasher(byte_view(x.contiguous().clone())).hexdigest()
    return TensorRecord(str(dtype_named(x.dtype)), tuple(x.shape), digest, *where)


def with_projector(one: Specialist, own: Mapping[str, torch.Tensor]) -> Any:
    """Return a task's own model: the specialist with other parameters of its projector."""
    model = type(one.model)(one.model.config).eval().requires_grad_(False)
    model.load_state_dict(one.model.state_dict())
    model.load_state_dict({f"model.{name}": x for name, x in own.items()}, strict=False)
    model.generation_config.eos_token_id = None
    return model


class DenseMixture(nn.Module):
    """Σ_k α_k g_k, with all projectors run on all rows, for `tiles` rows an image: the reference."""

    def __init__(
        self,
        plain: nn.Module,
        sets: Sequence[Mapping[str, torch.Tensor]],
        weights: torch.Tensor,
        tiles: Sequence[int],
    ) -> None:
        super().__init__()
        self.plain, self.weights, self.tiles = plain, weights.float(), torch.tensor(tiles)
        self.sets = [{name.removeprefix(f"{PATH}."): x for name, x in own.items()} for own in sets]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs = torch.stack([functional_call(self.plain, own, (x,)) for own in self.sets], dim=1)
        weights = self.weights.repeat_interleave(self.tiles, dim=0)
        mixed: torch.Tensor = (outputs * weights.view(*weights.shape, *[1] * (outputs.ndim - 2))).sum(1)
        return mixed


def mixed(
    one: Specialist, sets: Sequence[Mapping[str, torch.Tensor]], weights: torch.Tensor, tiles: Sequence[int]
) -> Any:
    """Return the specialist with the dense mixture as its projector."""
    model = with_projector(one, sets[0])
    model.model.multi_modal_projector = DenseMixture(model.model.multi_modal_projector, sets, weights, tiles)
    return model


def expected_weights(
    x: torch.Tensor, tiles: Sequence[int], prototypes: Sequence[torch.Tensor], **rules: Any
) -> torch.Tensor:
    """Return the weights of images whose tiles are the rows of x [rows, positions, d]."""
    pooled = torch.stack([part.flatten(0, -2).mean(0) for part in x.double().split(list(tiles))])
    return Prototypes(prototypes).weights(pooled, **{"temperature": 0.03, "centred": True, **rules})
