"""Trains the base on varied digits, and fine-tunes a copy of it for each task."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import ViTForImageClassification

from _models import logits, new_model
from _tasks import Split, Task

__all__ = ["finetune", "finetune_adapter", "pretrain", "vary"]

PRETRAIN_STEPS, PRETRAIN_RATE = 2300, 1.5e-3
TUNE_STEPS, TUNE_RATE = 120, 1e-3
LORA_STEPS, LORA_RATE, LORA_RANK = 120, 5e-3, 8
BATCH = 64
WILD_SHARE = 0.65

Augment = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


def pretrain(train: Split) -> ViTForImageClassification:
    """Return the base: a third of what it sees is upright, the rest turned, mirrored, dimmed at will.

    Merging needs a base that knows more than one task: the variety makes it a generalist, good at
    upright digits and half good at strange ones, as a large pretrained model would be.
    """
    model = new_model(seed=0)
    _fit(model, train, lambda x, g: vary(x, g, WILD_SHARE), PRETRAIN_STEPS, PRETRAIN_RATE, decay=0.05)
    return model


def finetune(model: ViTForImageClassification, train: Split, task: Task) -> None:
    """Fine-tune a copy of the base in place on one view; the head stays as it is, so all share it."""
    model.classifier.requires_grad_(False)
    _fit(model, train, lambda x, g: task.view(vary(x, g, 0)), TUNE_STEPS, TUNE_RATE, decay=0.0)


def finetune_adapter(model: ViTForImageClassification, train: Split, task: Task) -> PeftModel:
    """Return the base with a LoRA adapter on all its linear maps but the head, trained on one view."""
    torch.manual_seed(0)  # every adapter starts from the same factors
    config = LoraConfig(
        r=LORA_RANK, lora_alpha=LORA_RANK, target_modules="all-linear", exclude_modules=["classifier"]
    )
    tuned = get_peft_model(model, config)
    _fit(tuned, train, lambda x, g: task.view(vary(x, g, 0)), LORA_STEPS, LORA_RATE, decay=0.0)
    return tuned


def _fit(
    model: ViTForImageClassification | PeftModel,
    train: Split,
    augment: Augment,
    steps: int,
    rate: float,
    decay: float,
) -> None:
    draw = torch.Generator().manual_seed(0)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    model.train()
    for _ in range(steps):
        batch = torch.randint(len(train), (BATCH,), generator=draw)
        scores = logits(model, augment(train.images[batch], draw))
        loss = torch.nn.functional.cross_entropy(scores, train.labels[batch], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()


def vary(images: torch.Tensor, draw: torch.Generator, wild_share: float) -> torch.Tensor:
    """Return images moved, scaled and turned a little; a share of them changed far more.

    Those are turned to any angle, mirrored or not, and change in contrast down to a full inversion.
    """

    def uniform(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(len(images), generator=draw)

    wild = uniform(0, 1) < wild_share
    angle = torch.where(wild, uniform(-math.pi, math.pi), uniform(-0.25, 0.25))
    mirror = torch.where(wild & (uniform(0, 1) < 0.5), -1.0, 1.0)
    contrast = torch.where(wild, uniform(-1, 1), torch.ones(len(images)))
    scale = uniform(0.85, 1.15)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    across = torch.stack([cos * mirror, -sin, uniform(-0.15, 0.15)], dim=1)
    down = torch.stack([sin * mirror, cos, uniform(-0.15, 0.15)], dim=1)
    grid = torch.nn.functional.affine_grid(torch.stack([across, down], 1), images.shape, align_corners=False)
    moved = torch.nn.functional.grid_sample(images, grid, align_corners=False)
    return 0.5 + (moved - 0.5) * contrast[:, None, None, None]
