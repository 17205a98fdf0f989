"""Trains the frozen encoders of the senses, and caches what they say of every input."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.replication import cache as store
from benchmarks.replication.audiovisual.senses import Sense, Split, parts
from benchmarks.replication.suite import seed_of

__all__ = ["DEGRADED", "Features", "centre", "load", "prepare"]

DEGRADED = 0.65
"""What the encoder's own classifier still reads of degraded inputs; their noise is chosen on validation."""
LARGEST = 8.0
"""Of the noise that is tried."""
FEATURES = 64


@dataclass(frozen=True)
class Features:
    """What the encoder says of one part: of clean inputs and of noisy ones, shape [n, 64], and the digits.

    In the training part the noise of each input is of another strength, up to 1.5 times that of degraded
    inputs.
    """

    clean: torch.Tensor
    noisy: torch.Tensor
    digits: torch.Tensor


def prepare(
    sense: Sense, data: Path | None, folder: Path, epochs: int | None = None, most: int | None = None
) -> None:
    """Train the encoder and write it and all features, unless they are there.

    `epochs` and `most`, about how many inputs of each part are taken, make it shorter.
    """
    epochs = epochs or sense.epochs
    config = {"sense": sense.slot, "epochs": epochs, "most": most, "degraded": DEGRADED}
    if store.done(folder, config) is not None:
        return
    split = {name: _some(one, most) for name, one in parts(sense, data).items()}
    seed = seed_of("encoder", sense.slot)
    torch.manual_seed(seed)
    encoder, classifier = sense.encoder(), nn.Linear(FEATURES, 10)
    with store.write_whole(folder, config) as (part, found):
        started = time.perf_counter()
        _fit(encoder, classifier, split["train"], epochs, seed)
        draw = torch.Generator().manual_seed(seed)

        def reads(some: Split, noise: float) -> float:
            x = some.inputs + noise * torch.randn(some.inputs.shape, generator=draw)
            right = classifier(run_all(encoder, x)).argmax(-1) == some.digits
            return right.double().mean().item()

        with torch.inference_mode():
            noise = _bisect(lambda level: reads(split["validation"], level))
            found["noise"] = round(noise, 3)
            found["accuracy"] = {
                name: {"clean": reads(split[name], 0), "degraded": reads(split[name], noise)}
                for name in ("validation", "test")
            }
            tensors = {}
            for name, one in split.items():
                strength = torch.full((len(one.inputs),), noise)
                if name == "train":
                    strength = 1.5 * noise * torch.rand(len(one.inputs), generator=draw)
                shape = (-1, *[1] * (one.inputs.ndim - 1))
                blurred = one.inputs + strength.view(shape) * torch.randn(one.inputs.shape, generator=draw)
                tensors[f"{name}.clean"] = run_all(encoder, one.inputs)
                tensors[f"{name}.noisy"] = run_all(encoder, blurred)
                tensors[f"{name}.digits"] = one.digits
        save_file(tensors, part / "features.safetensors")
        save_file(dict(encoder.state_dict()), part / "encoder.safetensors")
        found["seconds"] = round(time.perf_counter() - started, 1)


def _some(split: Split, most: int | None) -> Split:
    every = max(1, len(split.digits) // most) if most else 1
    return Split(split.inputs[::every].contiguous(), split.digits[::every].contiguous())


def load(folder: Path) -> dict[str, Features]:
    """Return part -> features."""
    if store.read(folder) is None:
        raise SystemExit(f"not trained yet: the encoder of {folder.name} — run `train` first")
    found = load_file(folder / "features.safetensors")
    return {
        name: Features(*(found[f"{name}.{what}"] for what in ("clean", "noisy", "digits")))
        for name in ("train", "validation", "test")
    }


def centre(features: Mapping[str, Features]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and deviation of the clean training features, shape [64] each."""
    clean = features["train"].clean
    return clean.mean(0), clean.std(0) + 1e-3


def _fit(encoder: nn.Module, classifier: nn.Module, train: Split, epochs: int, seed: int) -> None:
    """Train in place as a classifier of inputs, half of which have noise of a random strength."""
    draw = torch.Generator().manual_seed(seed)
    weights = [*encoder.parameters(), *classifier.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=2e-3, weight_decay=0.01)
    batches = [
        rows for _ in range(epochs) for rows in torch.randperm(len(train.digits), generator=draw).split(64)
    ]
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
    for rows in batches:
        x = train.inputs[rows]
        strength = 1.5 * torch.rand(len(x), generator=draw) * (torch.rand(len(x), generator=draw) < 0.5)
        x = x + strength.view(-1, *[1] * (x.ndim - 1)) * torch.randn(x.shape, generator=draw)
        loss = cross_entropy(classifier(encoder(x)), train.digits[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def run_all(encoder: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return torch.cat([encoder(some) for some in x.split(500)])


def _bisect(reads: Callable[[float], float]) -> float:
    """Return the noise at which `reads` is near `DEGRADED`."""
    low, high = 0.0, LARGEST
    for _ in range(10):
        middle = (low + high) / 2
        low, high = (middle, high) if reads(middle) > DEGRADED else (low, middle)
    return (low + high) / 2
