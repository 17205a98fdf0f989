"""The model: a small vision transformer of Hugging Face's, saved and measured in the ordinary way."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from peft import PeftModel
from transformers import ViTConfig, ViTForImageClassification

from _tasks import CLASSES, SIDE, TASKS, Split

__all__ = ["accuracies", "load", "logits", "new_model", "pixels", "save"]

PREPROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": False,
    "do_rescale": True,
    "rescale_factor": 1 / 16,  # the files' pixels run from 0 to 16
    "do_normalize": True,
    "image_mean": [0.5],
    "image_std": [0.5],
}


def new_model(seed: int) -> ViTForImageClassification:
    """Return an untrained model: 3 layers of width 64 on 16 patches, 0.1 M parameters."""
    torch.manual_seed(seed)
    return ViTForImageClassification(
        ViTConfig(
            image_size=SIDE,
            patch_size=2,
            num_channels=1,
            num_labels=CLASSES,
            hidden_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=128,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )


def save(model: ViTForImageClassification, folder: Path) -> None:
    """Save a checkpoint with its image processor's settings.

    Its tensors are called as the model's modules are, not as in older files: an adapter goes by the modules.
    """
    model.save_pretrained(folder, save_original_format=False)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR, indent=2) + "\n")


def load(folder: Path, base: Path | None = None) -> ViTForImageClassification:
    """Return the model that a folder holds, ready to be used; an adapter's on top of its base."""
    if not (folder / "adapter_config.json").exists():
        return ViTForImageClassification.from_pretrained(folder).eval()
    model = ViTForImageClassification.from_pretrained(base)
    return PeftModel.from_pretrained(model, folder).merge_and_unload().eval()


def logits(model: ViTForImageClassification, images: torch.Tensor) -> torch.Tensor:
    """Return class scores, shape [n, 10], for images with values in [0, 1]."""
    return model(pixel_values=pixels(images)).logits


def pixels(images: torch.Tensor) -> torch.Tensor:
    """Return images with values in [0, 1] as the processor's mean and deviation make them."""
    return images * 2 - 1


@torch.no_grad()
def accuracies(model: ViTForImageClassification, split: Split) -> dict[str, float]:
    """Return task -> share of the split's images that the model gets right, in percent."""
    model.eval()
    views = torch.cat([task.view(split.images) for task in TASKS])
    right = logits(model, views).argmax(1).view(len(TASKS), -1) == split.labels
    return {task.name: 100 * hits.float().mean().item() for task, hits in zip(TASKS, right, strict=True)}
