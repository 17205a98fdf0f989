"""What can be named: digits, letters, clothes, things, signs, cells, chests, doodles, sounds."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.replication.rows import PARQUET, HubSet, Rows, SuiteTask, one_fifth_apart
from benchmarks.replication.vision.pictures import rows
from benchmarks.replication.vision.sounds import spectrogram

__all__ = ["ALPHABETS", "NAMED", "arrays", "drawings"]

ALPHABETS = {
    "aramaic": "Early_Aramaic",
    "balinese": "Balinese",
    "greek": "Greek",
    "katakana": "Japanese_(katakana)",
    "korean": "Korean",
    "latin": "Latin",
    "sanskrit": "Sanskrit",
    "tagalog": "Tagalog",
}
"""Of Omniglot, those of its two small background sets."""
TEST_DRAWERS = 16
"""Of twenty; those after it draw the test."""


def arrays(root: Path, *parts: str) -> Any:
    """Return the arrays of a file by name."""
    return np.load(root.joinpath(*parts), allow_pickle=False)


def _parts(root: Path, *, file: str) -> tuple[Rows, Rows]:
    data = arrays(root, file)
    train, test = (rows(data[f"x_{part}"], data[f"y_{part}"]) for part in ("train", "test"))
    return train, test


def _without_test(root: Path, *, file: str) -> tuple[Rows, Rows]:
    data = arrays(root, file)
    return one_fifth_apart(rows(data["x"], data["y"]))


def _pneumonia(root: Path) -> tuple[Rows, Rows]:
    data = arrays(root, "pneumonia", "pneumoniamnist.npz")
    train, more, test = (
        rows(data[f"{part}_images"], data[f"{part}_labels"][:, 0]) for part in ("train", "val", "test")
    )
    return train + more, test


def _cells(root: Path) -> tuple[Rows, Rows]:
    data = arrays(root, "bccd", "bccd.npz")
    of_test = data["crop_img"] % 5 == 0  # by photograph
    train, test = (rows(data["crops"][part], data["crop_y"][part]) for part in (~of_test, of_test))
    return train, test


def _spoken(root: Path, *, label: str) -> tuple[Rows, Rows]:
    data, pictures = arrays(root, "fsdd", "fsdd8k.npz"), _spectrograms(root)
    of_test = data["index"] < 5  # as the authors have it
    train, test = (rows(pictures[part], data[label][part]) for part in (~of_test, of_test))
    return train, test


@cache
def _spectrograms(root: Path) -> np.ndarray:
    data = arrays(root, "fsdd", "fsdd8k.npz")
    pcm, ends = data["pcm"], data["offsets"]
    return np.stack([spectrogram(pcm[i:j]) for i, j in pairwise(ends)])


def drawings(root: Path, alphabet: str) -> list[tuple[str, int, int, np.ndarray]]:
    """Return name, letter, drawer (1 … 20) and light-on-dark drawing, shape [32, 32], of an alphabet."""
    from PIL import Image

    for part in ("small1", "small2"):
        with zipfile.ZipFile(root / "omniglot" / f"images_background_{part}.zip") as archive:
            start = f"images_background_{part}/{alphabet}/"
            files = sorted(n for n in archive.namelist() if n.startswith(start) and n.endswith(".png"))
            letters = sorted({file.split("/")[2] for file in files})
            drawn_files = []
            for file in files:
                _, _, letter, name = file.split("/")
                drawn = (
                    Image.open(io.BytesIO(archive.read(file)))
                    .convert("L")
                    .resize((32, 32), Image.Resampling.BOX)
                )
                stem = name.removesuffix(".png")
                drawn_files.append((stem, letters.index(letter), int(stem[-2:]), 255 - np.asarray(drawn)))
        if drawn_files:
            return drawn_files
    raise SystemExit(f"Omniglot: no alphabet {alphabet} in {root / 'omniglot'}")


def _alphabet(root: Path, *, alphabet: str) -> tuple[Rows, Rows]:
    train: Rows = []
    test: Rows = []
    for _, letter, drawer, drawn in drawings(root, alphabet):
        (test if drawer > TEST_DRAWERS else train).extend(rows(drawn[None], [letter]))
    return train, test


def _file(folder: str, name: str) -> Callable[[Path], tuple[Rows, Rows]]:
    return partial(_parts, file=f"{folder}/{name}.npz")


def _hub(repo: str, column: str = "image", **rest: str) -> HubSet:
    return HubSet(repo, (column,), "label", **rest)


NAMED = {
    task.name: task
    for task in (
        SuiteTask("mnist", _file("mnist", "mnist_t10k"), _hub("ylecun/mnist")),
        SuiteTask("fashion", _file("fashion", "fashion"), _hub("zalando-datasets/fashion_mnist")),
        SuiteTask("notmnist", _file("notmnist", "notmnist_t10k"), _hub("anubhavmaity/notMNIST")),
        SuiteTask("kannada", partial(_without_test, file="kannada/kannada_test.npz"), None),
        SuiteTask("dig", partial(_without_test, file="kannada/dig_mnist.npz"), None),
        SuiteTask("farsi", _file("farsi", "hoda_test20000_first1000pc"), None),
        SuiteTask("bangla", _file("bangla", "bangla"), None),
        SuiteTask("devanagari", _file("devanagari", "devanagari"), None),
        SuiteTask("usps", _file("usps", "usps_t"), _hub("flwrlabs/usps")),
        SuiteTask("cifar10", _file("cifar10", "cifar10"), _hub("uoft-cs/cifar10", "img")),
        SuiteTask("gtsrb", _file("gtsrb", "gtsrb32"), _hub("tanganke/gtsrb")),
        SuiteTask("bccd", _cells, None),
        SuiteTask(
            "pneumonia",
            _pneumonia,
            _hub("albertvillanova/medmnist-v2", config="pneumoniamnist", revision=PARQUET),
        ),
        SuiteTask("doodles", _file("doodles", "quickdraw3"), None),
        SuiteTask("digits", partial(_spoken, label="digit"), None),
        SuiteTask("speakers", partial(_spoken, label="speaker"), None),
        *(SuiteTask(name, partial(_alphabet, alphabet=folder), None) for name, folder in ALPHABETS.items()),
    )
}
"""All tasks of classes that can be asked for. Sounds, cells and alphabets are cut or drawn here; of the other
scripts we know no set on the Hub."""
