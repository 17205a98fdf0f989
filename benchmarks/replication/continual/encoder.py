"""The frozen vision encoder, trained on other sets than the tasks', and what it says of their images."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.replication import cache as store
from benchmarks.replication.continual.tasks import OTHER_SETS, Asked, Task, images, npz, parts
from benchmarks.replication.suite import seed_of

__all__ = ["CHANNELS", "PATCHES", "View", "load", "look", "teach"]

CHANNELS, PATCHES = 64, 16


@dataclass(frozen=True)
class View:
    """What the encoder says of a part's images, shape [n, 16, 64], and the questions about them."""

    features: torch.Tensor
    asked: list[Asked]


class Encoder(nn.Module):
    """Three convolutions: 4 × 4 patches of an image of 32 × 32, of mean 0 and deviation 1 when taught."""

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
        found: torch.Tensor = self.layers(x.float() / 127.5 - 1).flatten(2).transpose(1, 2)
        return (found - self.mean) / self.deviation


def teach(data: Path, folder: Path, steps: int) -> None:
    """Train the encoder as a classifier of the other sets, a set at each step, unless the folder has it."""
    config = {"sets": list(OTHER_SETS), "steps": steps}
    if store.done(folder, config) is not None:
        return
    sets = {}
    for name, file in OTHER_SETS.items():
        found = npz(data, file)
        sets[name] = images(found["x_train"]), torch.from_numpy(found["y_train"]).long()
    seed = seed_of("continual", "encoder")
    torch.manual_seed(seed)
    encoder = Encoder()
    heads = {name: nn.Linear(PATCHES * CHANNELS, int(y.max()) + 1) for name, (_, y) in sets.items()}
    weights = [p for one in (encoder, *heads.values()) for p in one.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    draw = torch.Generator().manual_seed(seed)
    with store.write_whole(folder, config) as (part, measured):
        started = time.perf_counter()
        for step in range(steps):
            name = list(sets)[step % len(sets)]
            x, y = sets[name]
            rows = torch.randint(len(y), (64,), generator=draw)
            loss = cross_entropy(heads[name](encoder(x[rows]).flatten(1)), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        with torch.inference_mode():
            some = torch.cat([encoder(x[:300]).flatten(0, 1) for x, _ in sets.values()])
        encoder.mean, encoder.deviation = some.mean(0).clone(), some.std(0).clone() + 1e-3
        save_file(dict(encoder.state_dict()), part / "encoder.safetensors")
        measured["seconds"] = round(time.perf_counter() - started, 1)


@torch.inference_mode()
def look(task: Task, data: Path, encoder: Path, folder: Path, sizes: Mapping[str, int]) -> None:
    """Write features and questions of a task, unless they are there; `sizes` are those of its parts."""
    config = {"task": task.name, "sizes": dict(sizes), "encoder": (store.read(encoder) or {})["config"]}
    if store.done(folder, config) is not None:
        return
    model = Encoder()
    model.load_state_dict(load_file(encoder / "encoder.safetensors"))
    found = parts(task, data, sizes["train"], sizes["validation"], sizes["test"])
    with store.write_whole(folder, config) as (part, _):
        features = {
            name: torch.cat([model(some) for some in one.images.split(500)]) for name, one in found.items()
        }
        save_file(features, part / "features.safetensors")
        (part / "asked.json").write_text(json.dumps({name: one.asked for name, one in found.items()}))


def load(folder: Path) -> dict[str, View]:
    """Return part -> features and questions."""
    if store.read(folder) is None:
        raise SystemExit(f"not trained yet: the encoder has not seen {folder.name} — run `train` first")
    features = load_file(folder / "features.safetensors")
    asked = json.loads((folder / "asked.json").read_text())
    return {name: View(features[name], [tuple(one) for one in asked[name]]) for name in features}
