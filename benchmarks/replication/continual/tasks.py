"""The six tasks: images, questions about them in the LM's language, and one word as an answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.replication.lm.words import COLOURS, NUMBERS, SHAPES, THINGS
from benchmarks.replication.npz import npz
from benchmarks.replication.rows import seed_of

__all__ = ["OTHER_SETS", "TASKS", "Asked", "AskedImages", "ImageTask", "images", "parts"]

Asked = tuple[int, str, str]
"""Number of the image, question, answer."""
Raw = tuple[np.ndarray, list[Asked]]


@dataclass(frozen=True)
class AskedImages:
    """Images, uint8 [n, 3, 32, 32], and questions about them."""

    images: torch.Tensor
    asked: list[Asked]


@dataclass(frozen=True)
class ImageTask:
    """A name, how its training and test items are read, and where others get the data."""

    name: str
    read: Callable[[Path], dict[str, Raw]]
    source: str


def parts(task: ImageTask, folder: Path, sizes: Mapping[str, int]) -> dict[str, AskedImages]:
    """Return train, validation and test with at most so many questions, the same for every run."""
    raw = task.read(folder)
    order = np.random.default_rng(seed_of("continual", task.name))
    pool, tested = ([raw[part][1][i] for i in order.permutation(len(raw[part][1]))] for part in raw)
    validation, rest = pool[: sizes["validation"]], pool[sizes["validation"] :]
    shown = {row for row, _, _ in validation}  # no image of the validation is trained on
    train = [one for one in rest if one[0] not in shown][: sizes["train"]]
    return {
        "train": _part(raw["train"][0], train),
        "validation": _part(raw["train"][0], validation),
        "test": _part(raw["test"][0], tested[: sizes["test"]]),
    }


def _part(pictures: np.ndarray, asked: list[Asked]) -> AskedImages:
    rows = sorted({row for row, _, _ in asked})
    place = {row: i for i, row in enumerate(rows)}
    return AskedImages(
        images(pictures[rows]), [(place[row], question, answer) for row, question, answer in asked]
    )


def images(x: np.ndarray) -> torch.Tensor:
    """Return colour images of 32 × 32: small ones padded or doubled, large ones averaged."""
    if x.ndim == 3:
        x = np.repeat(x[..., None], 3, axis=-1)
    side = x.shape[1]
    if side == 16:
        x = x.repeat(2, 1).repeat(2, 2)
    elif side < 32:
        before = (32 - side) // 2
        around = (before, 32 - side - before)
        x = np.pad(x, ((0, 0), around, around, (0, 0)), mode="edge")
    elif side > 32:
        step = side // 32
        x = x.reshape(len(x), 32, step, 32, step, 3).mean((2, 4)).astype(np.uint8)
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def _classes(name: str, words: tuple[str, ...], question: str) -> Callable[[Path], dict[str, Raw]]:
    """Return a reader of a set whose classes are called by these words."""

    def read(folder: Path) -> dict[str, Raw]:
        arrays = npz(folder, name)
        return {
            part: (
                arrays[f"x_{part}"],
                [(i, question, words[label]) for i, label in enumerate(arrays[f"y_{part}"].tolist())],
            )
            for part in ("train", "test")
        }

    return read


def _kannada(folder: Path) -> dict[str, Raw]:
    arrays = npz(folder, "kannada/kannada_test.npz")
    order = np.random.default_rng(seed_of("continual", "kannada", "parts")).permutation(len(arrays["y"]))
    cut = len(order) // 5
    return {
        part: (
            arrays["x"][rows],
            [(i, "number of image ?", NUMBERS[label]) for i, label in enumerate(arrays["y"][rows].tolist())],
        )
        for part, rows in (("train", order[cut:]), ("test", order[:cut]))
    }


def _easy_vqa(folder: Path) -> dict[str, Raw]:
    arrays = npz(folder, "easyvqa/images64.npz")
    return {
        part: (
            arrays[f"images_{part}"],
            [
                (row, *_plain(question, answer))
                for question, answer, row in json.loads(
                    (folder / "easyvqa" / f"{part}_questions.json").read_text()
                )
            ],
        )
        for part in ("train", "test")
    }


def _plain(question: str, answer: str) -> tuple[str, str]:
    """Return question and answer in the LM's language, where nothing is asked by its contrary."""
    words = question.rstrip("?").split()
    if answer in ("yes", "no"):
        guess = next(word for word in words if word in (*COLOURS, *SHAPES))
        if "not" in words or "no" in words:
            answer = "no" if answer == "yes" else "yes"
        return f"is image {guess} ?", answer
    return f"{'color' if answer in COLOURS else 'shape'} of image ?", answer


_SIGNS = {
    **dict.fromkeys((0, 1, 2, 3, 4, 5, 7, 8), "limit"),
    **dict.fromkeys((9, 10, 15, 16, 17), "ban"),
    **dict.fromkeys((11, 12, 13, 14), "priority"),
    **dict.fromkeys(range(18, 32), "danger"),
    **dict.fromkeys(range(33, 41), "order"),
    **dict.fromkeys((6, 32, 41, 42), "end"),
}
"""Class of a traffic sign -> its kind."""

TASKS = (
    ImageTask("mnist", _classes("mnist/mnist_t10k.npz", NUMBERS, "number of image ?"), "ylecun/mnist"),
    ImageTask(
        "fashion",
        _classes("fashion/fashion.npz", THINGS[:10], "thing of image ?"),
        "zalando-datasets/fashion_mnist",
    ),
    ImageTask("easy-vqa", _easy_vqa, "vzhou842/easy-VQA on GitHub"),
    ImageTask(
        "notmnist",
        _classes("notmnist/notmnist_t10k.npz", THINGS[20:30], "thing of image ?"),
        "davidflanagan/notMNIST-to-MNIST on GitHub",
    ),
    ImageTask("kannada", _kannada, "vinayprabhu/Kannada_MNIST on GitHub"),
    ImageTask(
        "signs",
        _classes("gtsrb/gtsrb32.npz", tuple(_SIGNS[i] for i in range(43)), "thing of image ?"),
        "GTSRB, benchmark.ini.rub.de",
    ),
)
OTHER_SETS = {
    "cifar10": "cifar10/cifar10.npz",
    "farsi": "farsi/hoda_test20000_first1000pc.npz",
    "bangla": "bangla/bangla.npz",
    "devanagari": "devanagari/devanagari.npz",
    "doodles": "doodles/quickdraw3.npz",
}
"""What the encoder is trained on: sets that are no task."""
