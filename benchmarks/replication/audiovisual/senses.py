"""What the three modalities are: digits as images, as spoken words, and as sets of points."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.replication.suite import seed_of

__all__ = ["SENSES", "Sense", "Split", "log_mel", "parts", "points"]

BANDS = FRAMES = 32
POINTS = 64
HELD = 1000
"""Validation items, where the set has no part of its own for them."""
Arrays = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Split:
    """Inputs, float32 of mean 0 and deviation 1 over the training part, and their digits."""

    inputs: torch.Tensor
    digits: torch.Tensor


@dataclass(frozen=True)
class Sense:
    """A modality: its slot in the language, its data, its encoder, and the new skill of its specialist.

    `source` says where others get the data.
    """

    slot: str
    new: str
    read: Callable[[Path], dict[str, Arrays]]
    encoder: Callable[[], nn.Module]
    source: str
    epochs: int = 6


def parts(sense: Sense, folder: Path) -> dict[str, Split]:
    """Return train, validation and test, the same for every run."""
    raw = sense.read(folder)
    if "validation" not in raw:
        x, y = raw["train"]
        order = np.random.default_rng(seed_of("senses", sense.slot)).permutation(len(y))
        held = min(HELD, len(y) // 3)
        raw["validation"] = x[order[:held]], y[order[:held]]
        raw["train"] = x[order[held:]], y[order[held:]]
    mean, deviation = raw["train"][0].mean(), raw["train"][0].std()
    return {
        name: Split(torch.from_numpy((x - mean) / deviation).float(), torch.from_numpy(y.astype(np.int64)))
        for name, (x, y) in raw.items()
    }


def _npz(folder: Path, *path: str) -> Mapping[str, np.ndarray]:
    file = folder.joinpath(*path)
    if not file.exists():
        raise SystemExit(f"no data: {'/'.join(path)} is not in the folder that SUBMERGE_DATA names")
    found: Mapping[str, np.ndarray] = np.load(file)
    return found


def _images(folder: Path) -> dict[str, Arrays]:
    found = _npz(folder, "mnist", "mnist_t10k.npz")
    return {part: (found[f"x_{part}"][:, None] / 255.0, found[f"y_{part}"]) for part in ("train", "test")}


def _sounds(folder: Path) -> dict[str, Arrays]:
    """Return spectra; recordings 0 to 4 of each speaker and digit are the test, as its authors have it."""
    found = _npz(folder, "fsdd", "fsdd8k.npz")
    ends, pcm = found["offsets"], found["pcm"]
    x = np.stack([log_mel(pcm[a:b]) for a, b in pairwise(ends)])[:, None]
    y, index = found["digit"], found["index"]
    where = {"test": index < 5, "validation": (index >= 5) & (index < 10), "train": index >= 10}
    return {part: (x[rows], y[rows]) for part, rows in where.items()}


def _points(folder: Path) -> dict[str, Arrays]:
    found = _npz(folder, "farsi", "hoda_test20000_first1000pc.npz")
    return {
        part: (
            np.stack([points(image, number) for number, image in enumerate(found[f"x_{part}"])]),
            found[f"y_{part}"],
        )
        for part in ("train", "test")
    }


def log_mel(pcm: np.ndarray, rate: int = 8000, window: int = 256, hop: int = 128) -> np.ndarray:
    """Return the log power of 32 mel bands in the 32 loudest frames, shape [bands, frames]."""
    wave = torch.from_numpy(pcm.astype(np.float32) / 32768)
    wave = nn.functional.pad(wave, (0, max(0, window + hop * (FRAMES - 1) - len(wave))))
    power = wave.unfold(0, window, hop).mul(torch.hann_window(window)).to(torch.float32)
    power = torch.fft.rfft(power).abs().square()  # [frames, bins]
    loud = power.sum(1).unfold(0, FRAMES, 1).sum(1).argmax()
    return (power[loud : loud + FRAMES] @ _mel_filters(rate, window)).add(1e-6).log().T.numpy()


def _mel_filters(rate: int, window: int) -> torch.Tensor:
    """Return triangles that are evenly spaced in mel, shape [bins, bands]."""
    top = 2595 * np.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, BANDS + 2) / 2595) - 1)
    bins = np.fft.rfftfreq(window, 1 / rate)[:, None]
    rise = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return torch.from_numpy(np.minimum(rise, fall).clip(0)).float()


def points(image: np.ndarray, number: int) -> np.ndarray:
    """Return 64 places on the ink of an image, in no order, shape [points, 2]."""
    draw = np.random.default_rng(seed_of("points", number))
    ink = np.argwhere(image > 127)
    if not len(ink):
        ink = np.argwhere(image >= image.max())
    some = ink[draw.integers(len(ink), size=POINTS)] + draw.random((POINTS, 2))
    return some / (image.shape[0] / 2) - 1


class _Picture(nn.Sequential):
    """Three convolutions and a linear map, to 64 features."""

    def __init__(self, side: int) -> None:
        left = -(-side // 8)
        super().__init__(
            *(nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(64 * left * left, 64)),
        )


class _Cloud(nn.Module):
    """A map of every point, and the largest value over points: 64 features that know no order."""

    def __init__(self) -> None:
        super().__init__()
        self.each = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 256), nn.ReLU())
        self.all = nn.Sequential(nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.all(self.each(x).amax(-2))
        return found


SENSES = (
    Sense("image", "successor", _images, lambda: _Picture(28), "MNIST (ylecun/mnist on the Hub)"),
    Sense(
        *("audio", "predecessor", _sounds, lambda: _Picture(BANDS)),
        "Free Spoken Digit Dataset (Jakobovski/free-spoken-digit-dataset on GitHub)",
        epochs=20,
    ),
    Sense(
        *("points", "mirror", _points, _Cloud),
        "Hoda, Farsi digits (amir-saniyan/HodaDatasetReader on GitHub)",
        epochs=16,
    ),
)
