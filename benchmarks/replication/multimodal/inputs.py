"""Pictures and sounds of digits and of animals, by part, and how they are degraded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.replication.npz import npz

__all__ = ["ANIMALS", "DEGRADED", "DIGITS", "PARTS", "RATE", "InputSet", "degraded", "images", "read"]

PARTS = ("train", "validation", "test")
DIGITS = tuple("0123456789")
ANIMALS = ("bird", "dog", "frog")
"""Those that both sets have and that small pictures tell apart."""
RATE = 16000
"""Samples of a sound in a second."""
SIDE = 32
"""Pixels of a picture, each way."""
PICTURE_NOISE, SOUND_NOISE = 0.35, 1.0
"""Deviation of noise of strength 1: of a pixel's range, and of the sound's own deviation."""
DEGRADED = 1.75
"""Strength of the noise in degraded inputs, of which specialists of the first seed read about two thirds."""


@dataclass(frozen=True)
class InputSet:
    """Inputs of one part of a set, with their words: pictures [32, 32, 3] of bytes, or sounds of float32."""

    inputs: list[np.ndarray]
    words: list[str]

    def of(self, word: str) -> np.ndarray:
        """Return the numbers of the inputs that show a word."""
        return np.flatnonzero(np.array(self.words) == word)


Sets = Mapping[str, Mapping[str, InputSet]]
"""Kind ("digit" or "animal") -> part -> inputs."""


@cache
def read(folder: Path) -> dict[str, Sets]:
    """Return modality -> kind -> part -> inputs, the same for every run, from the folder of data."""
    return {
        "image": images(folder),
        "audio": {"digit": _spoken_digits(folder), "animal": _animal_sounds(folder)},
    }


def images(folder: Path) -> Sets:
    """Return the pictures alone."""
    return {"digit": _drawn_digits(folder), "animal": _photographs(folder)}


def degraded(modality: str, one: np.ndarray, strength: float, draw: np.random.Generator) -> np.ndarray:
    """Return an input with white noise."""
    noise = draw.standard_normal(one.shape)
    if modality == "image":
        noisy: np.ndarray = (one + 255 * PICTURE_NOISE * strength * noise).clip(0, 255).astype(np.uint8)
        return noisy
    loud = (one + SOUND_NOISE * strength * one.std() * noise).astype(np.float32)
    return loud / max(1.0, float(np.abs(loud).max()))


def _drawn_digits(folder: Path) -> dict[str, InputSet]:
    data = npz(folder, "mnist", "mnist_t10k.npz")
    validation = np.arange(len(data["y_train"])) >= 7000
    return _with_validation(data, validation, lambda y: DIGITS[y])


def _photographs(folder: Path) -> dict[str, InputSet]:
    data = npz(folder, "cifar10", "cifar10.npz")
    names = [str(name) for name in data["classes"]]
    shown = {
        part: np.isin(data[f"y_{part}"], [names.index(one) for one in ANIMALS]) for part in ("train", "test")
    }
    data = {f"{what}_{part}": data[f"{what}_{part}"][which] for part, which in shown.items() for what in "xy"}
    validation = np.arange(len(data["y_train"])) % 8 == 7
    return _with_validation(data, validation, lambda y: names[y])


def _with_validation(
    data: Mapping[str, Any], validation: np.ndarray, word: Callable[[int], str]
) -> dict[str, InputSet]:
    """Return the parts of a set of pictures; some of its training part are for validation."""
    x, y = data["x_train"], data["y_train"]
    parts = {"train": (x[~validation], y[~validation]), "validation": (x[validation], y[validation])}
    parts["test"] = data["x_test"], data["y_test"]
    return {part: InputSet(_pictures(x), [word(int(i)) for i in y]) for part, (x, y) in parts.items()}


def _pictures(pixels: np.ndarray) -> list[np.ndarray]:
    """Return images of h × h pixels, grey or of colours, as [32, 32, 3] with a margin like their edge."""
    colours = pixels if pixels.ndim == 4 else np.repeat(pixels[..., None], 3, 3)
    gap = SIDE - pixels.shape[1]
    sides = (gap // 2, gap - gap // 2)
    return list(np.pad(colours, ((0, 0), sides, sides, (0, 0)), mode="edge"))


def _spoken_digits(folder: Path) -> dict[str, InputSet]:
    """Return recordings; 0 to 4 of each speaker and digit are the test, as the set's authors have it."""
    data = npz(folder, "fsdd", "fsdd8k.npz")
    index = data["index"]
    where = {"train": index >= 10, "validation": (index >= 5) & (index < 10), "test": index < 5}
    return _sounds(data, where, [DIGITS[i] for i in data["digit"].tolist()])


def _animal_sounds(folder: Path) -> dict[str, InputSet]:
    """Return recordings; five with numbers next to each other may be of one animal, and stay together."""
    data = npz(folder, "animals", "animals8k.npz")
    names = data["classes"].tolist()
    words = [names[i] for i in data["label"].tolist()]
    block, shown = (data["number"] - 1) // 5, np.isin(words, ANIMALS)
    test, validation = block % 3 == 2, block % 6 == 1
    where = {"train": ~test & ~validation, "validation": validation, "test": test}
    return _sounds(data, {part: which & shown for part, which in where.items()}, words)


def _sounds(
    data: Mapping[str, np.ndarray], where: Mapping[str, np.ndarray], words: list[str]
) -> dict[str, InputSet]:
    pcm = data["pcm"]  # the file is read at every access
    sounds = [pcm[a:b] for a, b in pairwise(data["offsets"])]
    return {
        part: InputSet(
            [_sound(sounds[i]) for i in np.flatnonzero(which)], [words[i] for i in np.flatnonzero(which)]
        )
        for part, which in where.items()
    }


def _sound(pcm: np.ndarray) -> np.ndarray:
    """Return the loudest second of 16-bit samples at 8 kHz, at 16 kHz."""
    wave = pcm.astype(np.float64) / 32768
    length = RATE // 2
    if len(wave) > length:
        energy = np.concatenate([[0.0], np.cumsum(wave**2)])
        start = int(np.argmax(energy[length:] - energy[:-length]))
        wave = wave[start : start + length]
    spectrum = np.fft.rfft(wave)  # twice the rate: the same tones, and none above them
    return 2 * np.fft.irfft(spectrum, 2 * len(wave)).astype(np.float32)
