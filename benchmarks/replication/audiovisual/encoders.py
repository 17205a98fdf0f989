"""Trains the frozen encoders of the modalities, and caches their features of every input."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.replication.audiovisual.modalities import Modality, ModalityPart, parts
from benchmarks.replication.cache import Result, cached, timed, trained
from benchmarks.replication.loop import minimise
from benchmarks.replication.rows import seed_of

__all__ = ["DEGRADED", "Features", "centre", "load", "train"]

DEGRADED = 0.65
"""Accuracy of the encoder's own classifier on degraded inputs; their noise is chosen on validation."""
LARGEST = 8.0
"""Of the noise that is tried."""
FEATURES = 64


@dataclass(frozen=True)
class Features:
    """The encoder's features of one part: of clean inputs and of noisy ones, shape [n, 64], and the digits.

    In the training part the noise of each input is of another strength, up to 1.5 times that of degraded
    inputs.
    """

    clean: torch.Tensor
    noisy: torch.Tensor
    digits: torch.Tensor


def train(
    modality: Modality, data: Path | None, folder: Path, epochs: int | None = None, most: int | None = None
) -> None:
    """Train the encoder and write it and all features, unless they are there.

    `epochs` and `most`, about how many inputs of each part are taken, make it shorter.
    """
    epochs = epochs or modality.epochs
    config = {"sense": modality.slot, "epochs": epochs, "most": most, "degraded": DEGRADED}

    def make(part: Path, measured: Result) -> None:
        split = {name: _thinned(one, most) for name, one in parts(modality, data).items()}
        seed = seed_of("encoder", modality.slot)
        torch.manual_seed(seed)
        encoder, classifier = modality.encoder(), nn.Linear(FEATURES, 10)
        with timed(measured):
            _fit(encoder, classifier, split["train"], epochs, seed)
            _measure(encoder, classifier, split, torch.Generator().manual_seed(seed), part, measured)
        save_file(dict(encoder.state_dict()), part / "encoder.safetensors")

    cached(folder, config, make)


@torch.inference_mode()
def _measure(
    encoder: nn.Module,
    classifier: nn.Module,
    split: Mapping[str, ModalityPart],
    draw: torch.Generator,
    folder: Path,
    measured: Result,
) -> None:
    """Choose the noise of degraded inputs, measure accuracies, and write all features."""

    def accuracy(part: ModalityPart, noise: float) -> float:
        x = part.inputs + noise * torch.randn(part.inputs.shape, generator=draw)
        right = classifier(_run_all(encoder, x)).argmax(-1) == part.digits
        return right.double().mean().item()

    noise = _bisect(lambda level: accuracy(split["validation"], level))
    measured["noise"] = round(noise, 3)
    measured["accuracy"] = {
        name: {"clean": accuracy(split[name], 0), "degraded": accuracy(split[name], noise)}
        for name in ("validation", "test")
    }
    tensors = {}
    for name, one in split.items():
        strength = torch.full((len(one.inputs),), noise)
        if name == "train":
            strength = 1.5 * noise * torch.rand(len(one.inputs), generator=draw)
        shape = (-1, *[1] * (one.inputs.ndim - 1))
        noisy = one.inputs + strength.view(shape) * torch.randn(one.inputs.shape, generator=draw)
        tensors[f"{name}.clean"] = _run_all(encoder, one.inputs)
        tensors[f"{name}.noisy"] = _run_all(encoder, noisy)
        tensors[f"{name}.digits"] = one.digits
    save_file(tensors, folder / "features.safetensors")


def _thinned(part: ModalityPart, most: int | None) -> ModalityPart:
    every = max(1, len(part.digits) // most) if most else 1
    return ModalityPart(part.inputs[::every].contiguous(), part.digits[::every].contiguous())


def load(folder: Path) -> dict[str, Features]:
    """Return part -> features."""
    trained([folder], "the encoder")
    tensors = load_file(folder / "features.safetensors")
    return {
        name: Features(*(tensors[f"{name}.{what}"] for what in ("clean", "noisy", "digits")))
        for name in ("train", "validation", "test")
    }


def centre(features: Mapping[str, Features]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and deviation of the clean training features, shape [64] each."""
    clean = features["train"].clean
    return clean.mean(0), clean.std(0) + 1e-3


def _fit(encoder: nn.Module, classifier: nn.Module, train: ModalityPart, epochs: int, seed: int) -> None:
    """Train in place as a classifier of inputs, half of which have noise of a random strength."""
    draw = torch.Generator().manual_seed(seed)
    weights = [*encoder.parameters(), *classifier.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=2e-3, weight_decay=0.01)
    batches = [
        rows for _ in range(epochs) for rows in torch.randperm(len(train.digits), generator=draw).split(64)
    ]
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))

    def loss_of(step: int) -> torch.Tensor:
        x = train.inputs[batches[step]]
        strength = 1.5 * torch.rand(len(x), generator=draw) * (torch.rand(len(x), generator=draw) < 0.5)
        x = x + strength.view(-1, *[1] * (x.ndim - 1)) * torch.randn(x.shape, generator=draw)
        return cross_entropy(classifier(encoder(x)), train.digits[batches[step]])

    minimise(loss_of, weights, optimizer, schedule, range(len(batches)))


def _run_all(encoder: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return torch.cat([encoder(part) for part in x.split(500)])


def _bisect(accuracy: Callable[[float], float]) -> float:
    """Return the noise at which the accuracy is near `DEGRADED`."""
    low, high = 0.0, LARGEST
    for _ in range(10):
        middle = (low + high) / 2
        low, high = (middle, high) if accuracy(middle) > DEGRADED else (low, middle)
    return (low + high) / 2
