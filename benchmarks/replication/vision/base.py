"""The base of the vision suites: a small ViT that learns a thousand classes of formula-made images.

It sees no photograph and no drawing, so no task of a suite, and needs no data set.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.console import Say
from benchmarks.replication.loop import minimise, paced
from benchmarks.replication.rows import seed_of
from benchmarks.replication.vision.formula import CLASSES, SIZE, Formulas

__all__ = ["Pretraining", "pretrain"]

PATCH = 8


@dataclass(frozen=True)
class Pretraining:
    """How the base is made; `steps` fixes it, whatever the machine.

    Up to the cooling, the last share of the steps, a longer and a shorter run are the same.
    """

    steps: int
    width: int = 192
    layers: int = 4
    heads: int = 6
    batch: int = 64
    rate: float = 1.5e-3
    warmup: int = 200
    cooling: float = 0.25
    decay: float = 0.05
    seed: int = 0
    every: int = 100

    def config(self) -> dict[str, Any]:
        """Return all that decides about the weights, for a marker."""
        return {name: value for name, value in asdict(self).items() if name != "every"}


def pretrain(folder: Path, how: Pretraining, say: Say = print) -> None:
    """Write the base; a run that was ended goes on at its last checkpoint, beside the folder."""
    checkpoint = folder.with_name("pretraining.safetensors")
    model, classifier = _new(how)
    both = nn.ModuleDict({"model": model, "classifier": classifier})
    weights = dict(both.named_parameters())
    matrices = [value for value in weights.values() if value.ndim == 2]
    others = [value for value in weights.values() if value.ndim != 2]
    groups = [{"params": matrices, "weight_decay": how.decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=how.rate, betas=(0.9, 0.98))
    formulas = Formulas(how.seed)
    mean = 0.0

    def loss_of(step: int) -> torch.Tensor:
        draw = torch.Generator().manual_seed(seed_of(how.seed, "formula", step))
        images, labels = formulas.draw(how.batch, draw)
        means = model(pixel_values=2 * images - 1).last_hidden_state.mean(1)
        return cross_entropy(classifier(means), labels)

    def progress(step: int, loss: torch.Tensor) -> None:
        nonlocal mean
        mean += loss.item() / how.every
        if (step + 1) % how.every == 0:
            _save_checkpoint(checkpoint, weights, optimizer, how, step + 1)
            say(f"base: {step + 1} of {how.steps} steps, loss {mean:.3f} (chance {math.log(CLASSES):.2f})")
            mean = 0.0

    first = _restore(checkpoint, weights, optimizer, how)
    schedule = paced(optimizer, lambda step: _pace(step, how), first)
    both.train()
    steps = range(first, how.steps)
    minimise(loss_of, list(weights.values()), optimizer, schedule, steps, clip=1.0, after=progress)
    model.eval().save_pretrained(folder)
    checkpoint.unlink(missing_ok=True)


def _new(how: Pretraining) -> tuple[Any, nn.Linear]:
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(how.seed)
    config = ViTConfig(
        hidden_size=how.width,
        num_hidden_layers=how.layers,
        num_attention_heads=how.heads,
        intermediate_size=4 * how.width,
        image_size=SIZE,
        patch_size=PATCH,
    )
    model = ViTModel(config, add_pooling_layer=False)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if name.endswith(("o_proj", "fc2")):  # blocks begin near the identity
                module.weight.data *= 0.05
    model.embeddings.patch_embeddings.projection.weight.data = _patches(how.width)
    model.embeddings.position_embeddings.data[0, 1:] = _places(how.width)
    return model, nn.Linear(how.width, CLASSES)


def _patches(width: int) -> torch.Tensor:
    """Return filters of patches that lose as little as they can: orthogonal rows, shape [d, 3, 8, 8]."""
    return nn.init.orthogonal_(torch.empty(width, 3 * PATCH**2)).view(width, 3, PATCH, PATCH)


def _places(width: int) -> torch.Tensor:
    """Return waves of a third to two across the picture, along both sides, shape [16, d]."""
    side, count = SIZE // PATCH, width // 4
    place = (torch.arange(side) + 0.5) / side
    phases = place[:, None] * torch.logspace(-0.5, 2, count, 2) * math.pi
    line = torch.cat([phases.sin(), phases.cos()], 1)
    rows, columns = line[:, None].expand(-1, side, -1), line[None].expand(side, -1, -1)
    return 0.5 * torch.cat([rows, columns], 2).flatten(0, 1)


def _pace(step: int, how: Pretraining) -> float:
    """Return the share of the rate: up, level, and in the last quarter down to 0."""
    return min(1.0, (step + 1) / how.warmup, (how.steps - step) / (how.cooling * how.steps))


def _save_checkpoint(
    file: Path, weights: dict[str, Any], optimizer: torch.optim.Optimizer, how: Pretraining, step: int
) -> None:
    tensors = {f"weight/{name}": value.detach() for name, value in weights.items()}
    for name, value in weights.items():
        state = optimizer.state[value]
        tensors |= {f"{kind}/{name}": state[kind] for kind in ("exp_avg", "exp_avg_sq")}
    part = file.with_suffix(".part")
    save_file(tensors, part, {"step": str(step), "how": json.dumps(how.config())})
    shutil.move(part, file)


def _restore(file: Path, weights: dict[str, Any], optimizer: torch.optim.Optimizer, how: Pretraining) -> int:
    """Put a checkpoint's values in place; return the step to go on at, 0 where there is none of this base.

    One of a longer or a shorter run will do if neither has begun to cool.
    """
    if not file.exists():
        return 0
    with safe_open(file, "pt") as checkpoint:
        step, then = int(checkpoint.metadata()["step"]), json.loads(checkpoint.metadata()["how"])
        level = step <= (1 - how.cooling) * min(how.steps, then["steps"])
        if (then | {"steps": how.steps} if level else then) != how.config():
            return 0
        for name, value in weights.items():
            value.data.copy_(checkpoint.get_tensor(f"weight/{name}"))
            kinds = {kind: checkpoint.get_tensor(f"{kind}/{name}") for kind in ("exp_avg", "exp_avg_sq")}
            optimizer.state[value] = kinds | {"step": torch.tensor(float(step))}
    return step
