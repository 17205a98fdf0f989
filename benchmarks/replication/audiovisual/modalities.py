"""What the three modalities are: digits as images, as spoken words, and as sets of points."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.replication import hub
from benchmarks.replication.npz import npz
from benchmarks.replication.rows import HubSet, seed_of

__all__ = ["MODALITIES", "Modality", "ModalityPart", "log_mel", "parts", "points"]

BANDS = FRAMES = 32
RATE = 8000
"""Samples of a sound in a second."""
POINTS = 64
VALIDATION = 1000
"""Validation items, where the set has no part of its own for them."""
Raw = tuple[Sequence[np.ndarray], np.ndarray]
"""Inputs as they are stored, the bytes of a picture or the PCM of a sound, and their digits."""


@dataclass(frozen=True)
class ModalityPart:
    """Inputs, float32 of mean 0 and deviation 1 over the training part, and their digits."""

    inputs: torch.Tensor
    digits: torch.Tensor


@dataclass(frozen=True)
class Modality:
    """A modality: its slot in the language, its data, its encoder, and the new skill of its specialist.

    `read` takes it from the folder of data, `hub` and `cell` from the Hub, and `preprocess` makes of a stored
    input and its number the input of the encoder. `source` says where others get the data.
    """

    slot: str
    new: str
    read: Callable[[Path], dict[str, Raw]]
    hub: HubSet
    cell: Callable[[Any], np.ndarray]
    preprocess: Callable[[np.ndarray, int], np.ndarray]
    encoder: Callable[[], nn.Module]
    source: str
    epochs: int = 6


def parts(modality: Modality, folder: Path | None) -> dict[str, ModalityPart]:
    """Return train, validation and test, the same for every run; without a folder from the Hub."""
    stored = modality.read(folder) if folder else _of_hub(modality)
    raw = {
        name: (np.stack([modality.preprocess(x, number) for number, x in enumerate(inputs)]), digits)
        for name, (inputs, digits) in stored.items()
    }
    if "validation" not in raw:
        x, y = raw["train"]
        order = np.random.default_rng(seed_of("senses", modality.slot)).permutation(len(y))
        count = min(VALIDATION, len(y) // 3)
        raw["validation"] = x[order[:count]], y[order[:count]]
        raw["train"] = x[order[count:]], y[order[count:]]
    mean, deviation = raw["train"][0].mean(), raw["train"][0].std()
    return {
        name: ModalityPart(
            torch.from_numpy((x - mean) / deviation).float(), torch.from_numpy(y.astype(np.int64))
        )
        for name, (x, y) in raw.items()
    }


def _of_hub(modality: Modality) -> dict[str, Raw]:
    train, test = hub.rows(modality.hub, modality.cell)
    parts = (("train", train), ("test", test))
    return {name: ([row[0] for row in rows], np.array([row[2] for row in rows])) for name, rows in parts}


def _pictures(*path: str) -> Callable[[Path], dict[str, Raw]]:
    def read(folder: Path) -> dict[str, Raw]:
        arrays = npz(folder, *path)
        return {part: (arrays[f"x_{part}"], arrays[f"y_{part}"]) for part in ("train", "test")}

    return read


def _sounds(folder: Path) -> dict[str, Raw]:
    """Return PCM; recordings 0 to 4 of each speaker and digit are the test, as its authors have it."""
    arrays = npz(folder, "fsdd", "fsdd8k.npz")
    ends, pcm, y, index = (arrays[name] for name in ("offsets", "pcm", "digit", "index"))
    sounds = [pcm[a:b] for a, b in pairwise(ends)]
    where = {"test": index < 5, "validation": (index >= 5) & (index < 10), "train": index >= 10}
    return {part: ([sounds[i] for i in np.flatnonzero(rows)], y[rows]) for part, rows in where.items()}


def _grey(picture: Any) -> np.ndarray:
    """Return the bytes of a picture of PIL."""
    return np.asarray(picture.convert("L"))


def _pcm(sound: Any) -> np.ndarray:
    """Return a decoded sound of the Hub as PCM of 16 bits."""
    if sound["sampling_rate"] != RATE:
        raise SystemExit(f"the sounds have {sound['sampling_rate']} samples a second, not {RATE}")
    return (np.asarray(sound["array"]) * 32768).clip(-32768, 32767).astype(np.int16)


def log_mel(pcm: np.ndarray, rate: int = RATE, window: int = 256, hop: int = 128) -> np.ndarray:
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
    places = ink[draw.integers(len(ink), size=POINTS)] + draw.random((POINTS, 2))
    return places / (image.shape[0] / 2) - 1


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
    """A map of every point, and the largest value over points: 64 features of a set."""

    def __init__(self) -> None:
        super().__init__()
        self.each = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 256), nn.ReLU())
        self.all = nn.Sequential(nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.all(self.each(x).amax(-2))
        return features


MODALITIES = (
    Modality(
        slot="image",
        new="successor",
        read=_pictures("mnist", "mnist_t10k.npz"),
        hub=HubSet("ylecun/mnist", ("image",), "label"),
        cell=_grey,
        preprocess=lambda image, _: image[None] / 255.0,
        encoder=lambda: _Picture(28),
        source="MNIST (ylecun/mnist on the Hub)",
    ),
    Modality(
        slot="audio",
        new="predecessor",
        read=_sounds,
        hub=HubSet("mteb/free-spoken-digit-dataset", ("audio",), "label"),
        cell=_pcm,
        preprocess=lambda pcm, _: log_mel(pcm)[None],
        encoder=lambda: _Picture(BANDS),
        source="Free Spoken Digit Dataset (Jakobovski/free-spoken-digit-dataset on GitHub)",
        epochs=20,
    ),
    Modality(
        slot="points",
        new="mirror",
        read=_pictures("farsi", "hoda_test20000_first1000pc.npz"),
        hub=HubSet("flwrlabs/usps", ("image",), "label"),  # no set there has Hoda's Farsi digits
        cell=_grey,
        preprocess=points,
        encoder=_Cloud,
        source="Hoda, Farsi digits (amir-saniyan/HodaDatasetReader on GitHub)",
        epochs=16,
    ),
)
