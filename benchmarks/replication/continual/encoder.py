"""The frozen vision encoder, trained on other sets than the tasks', and its features of their images."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.replication import cache as store
from benchmarks.replication.cache import Result, cached, timed, trained
from benchmarks.replication.continual.tasks import OTHER_SETS, Asked, ImageTask, images, parts
from benchmarks.replication.loop import minimise
from benchmarks.replication.npz import npz
from benchmarks.replication.rows import seed_of

__all__ = ["CHANNELS", "PATCHES", "EncodedPart", "PatchEncoder", "encode", "load", "pretrain"]

CHANNELS, PATCHES = 64, 16


@dataclass(frozen=True)
class EncodedPart:
    """The features of a part's images, shape [n, 16, 64], and the questions about them."""

    features: torch.Tensor
    asked: list[Asked]


class PatchEncoder(nn.Module):
    """Three convolutions: 4 × 4 patches of an image of 32 × 32, of mean 0 and deviation 1 when trained."""

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        sizes = (3, 32, 48, CHANNELS)
        layers = [
            layer
            for a, b in pairwise(sizes)
            for layer in (nn.Conv2d(a, b, 3, stride=2, padding=1), nn.ReLU())
        ]
        self.layers = nn.Sequential(*layers)
        self.register_buffer("mean", torch.zeros(CHANNELS))
        self.register_buffer("deviation", torch.ones(CHANNELS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return patches of uint8 images, shape [n, 16, 64]."""
        features: torch.Tensor = self.layers(x.float() / 127.5 - 1).flatten(2).transpose(1, 2)
        return (features - self.mean) / self.deviation


def pretrain(data: Path, folder: Path, steps: int) -> None:
    """Train the encoder as a classifier of the other sets, a set at each step, unless the folder has it."""

    def make(part: Path, measured: Result) -> None:
        sets = {}
        for name, file in OTHER_SETS.items():
            arrays = npz(data, file)
            sets[name] = images(arrays["x_train"]), torch.from_numpy(arrays["y_train"]).long()
        seed = seed_of("continual", "encoder")
        torch.manual_seed(seed)
        encoder = PatchEncoder()
        with timed(measured):
            _fit(encoder, sets, steps, seed)
            with torch.inference_mode():
                features = torch.cat([encoder(x[:300]).flatten(0, 1) for x, _ in sets.values()])
            encoder.mean, encoder.deviation = features.mean(0).clone(), features.std(0).clone() + 1e-3
        save_file(dict(encoder.state_dict()), part / "encoder.safetensors")

    cached(folder, {"sets": list(OTHER_SETS), "steps": steps}, make)


def _fit(
    encoder: PatchEncoder, sets: Mapping[str, tuple[torch.Tensor, torch.Tensor]], steps: int, seed: int
) -> None:
    """Train in place, with a head for each set."""
    heads = {name: nn.Linear(PATCHES * CHANNELS, int(y.max()) + 1) for name, (_, y) in sets.items()}
    weights = [p for one in (encoder, *heads.values()) for p in one.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    draw = torch.Generator().manual_seed(seed)

    def loss_of(step: int) -> torch.Tensor:
        name = list(sets)[step % len(sets)]
        x, y = sets[name]
        rows = torch.randint(len(y), (64,), generator=draw)
        return cross_entropy(heads[name](encoder(x[rows]).flatten(1)), y[rows])

    minimise(loss_of, weights, optimizer, schedule, range(steps))


@torch.inference_mode()
def encode(task: ImageTask, data: Path, encoder: Path, folder: Path, sizes: Mapping[str, int]) -> None:
    """Write features and questions of a task, unless they are there; `sizes` are those of its parts."""

    def make(part: Path, _: Result) -> None:
        model = PatchEncoder()
        model.load_state_dict(load_file(encoder / "encoder.safetensors"))
        read = parts(task, data, sizes)
        features = {name: torch.cat([model(x) for x in one.images.split(500)]) for name, one in read.items()}
        save_file(features, part / "features.safetensors")
        (part / "asked.json").write_text(json.dumps({name: one.asked for name, one in read.items()}))

    config = {"task": task.name, "sizes": dict(sizes), "encoder": (store.read(encoder) or {})["config"]}
    cached(folder, config, make)


def load(folder: Path) -> dict[str, EncodedPart]:
    """Return part -> features and questions."""
    trained([folder], "its features")
    features = load_file(folder / "features.safetensors")
    asked = json.loads((folder / "asked.json").read_text())
    return {name: EncodedPart(features[name], [tuple(one) for one in asked[name]]) for name in features}
