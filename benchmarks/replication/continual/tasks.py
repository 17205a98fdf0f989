"""The image tasks: pictures, questions about them in plain English, and one word as an answer.

    fashion    What garment is this?                      names
    numbers    Which number is written?                   names, in Kannada
    shapes     What color is it? Is it a circle?          attributes, yes or no
    count      How many digits are there?                 counting, of one to four
    signs      What kind of sign is this?                 kinds
    photos     What is this? Is this an animal?           names, yes or no
    strokes    Is the stroke thick or thin?               attributes of the images of `numbers`

`strokes` is no task of the suite: no rule that looks at images can tell it from `numbers`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.replication.multimodal.reader import PromptRow
from benchmarks.replication.multimodal.unions import PLACEHOLDERS
from benchmarks.replication.npz import npz
from benchmarks.replication.rows import seed_of

__all__ = ["PARTS", "TASKS", "ImageQuestion", "ImageTask", "parts", "pictures"]

PARTS = ("train", "validation", "test")
SIDE = 32
"""Pixels of a picture, each way."""
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
GARMENTS = ("top", "trousers", "sweater", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
THINGS = ("plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
VEHICLES = ("plane", "car", "ship", "truck")
SHAPES = ("circle", "rectangle", "triangle")
COLOURS = ("red", "green", "blue", "yellow", "teal", "gray", "black", "brown")
SIGNS = {
    **dict.fromkeys((0, 1, 2, 3, 4, 5, 7, 8), "speed"),
    **dict.fromkeys((9, 10, 15, 16, 17), "ban"),
    **dict.fromkeys((11, 12, 13, 14), "priority"),
    **dict.fromkeys(range(18, 32), "danger"),
    **dict.fromkeys(range(33, 41), "direction"),
    **dict.fromkeys((6, 32, 41, 42), "end"),
}
"""Class of a traffic sign -> its kind."""
MOST_DIGITS = 4


@dataclass(frozen=True)
class ImageQuestion:
    """A question about the image of this number. `caption` says what it shows, for the alignment."""

    image: int
    question: str
    answer: str
    caption: str


Raw = tuple[np.ndarray, list[ImageQuestion]]
"""Images, bytes of shape [n, h, w] or [n, h, w, 3], and questions about them."""


@dataclass(frozen=True)
class ImageTask:
    """A name, how its training and test items are read from the folder of data, and where they come from."""

    name: str
    read: Callable[[Path], Mapping[str, Raw]]
    source: str


def parts(task: ImageTask, folder: Path, sizes: Mapping[str, int]) -> dict[str, list[PromptRow]]:
    """Return train, validation and test with at most so many questions, the same for every run.

    No image of the validation is trained on.
    """
    raw = task.read(folder)
    draw = np.random.default_rng(seed_of("continual", task.name))
    pool, tested = ([raw[part][1][i] for i in draw.permutation(len(raw[part][1]))] for part in raw)
    validation, rest = pool[: sizes["validation"]], pool[sizes["validation"] :]
    shown = {one.image for one in validation}
    train = [one for one in rest if one.image not in shown][: sizes["train"]]
    return {
        "train": _rows(raw["train"][0], train),
        "validation": _rows(raw["train"][0], validation),
        "test": _rows(raw["test"][0], tested[: sizes["test"]]),
    }


def _rows(images: np.ndarray, asked: Sequence[ImageQuestion]) -> list[PromptRow]:
    """Return prompts without a template, of as few tokens as can be."""
    shown = pictures(images[[one.image for one in asked]])
    return [
        PromptRow(
            PLACEHOLDERS["image"] + one.question,
            {"image": [image]},
            f" {one.answer}",
            f" {one.caption}",
        )
        for image, one in zip(shown, asked, strict=True)
    ]


def pictures(images: np.ndarray) -> np.ndarray:
    """Return colour images of 32 × 32, small ones with a margin like their edge, large ones averaged."""
    colours = images if images.ndim == 4 else np.repeat(images[..., None], 3, 3)
    side = colours.shape[1]
    if side > SIDE:
        step = side // SIDE
        cut = colours.reshape(len(images), SIDE, step, SIDE, step, 3)
        return np.asarray(cut.mean((2, 4)).astype(np.uint8))
    around = ((SIDE - side) // 2, SIDE - side - (SIDE - side) // 2)
    return np.pad(colours, ((0, 0), around, around, (0, 0)), mode="edge")


def _names(question: str, words: Sequence[str], labels: np.ndarray) -> list[ImageQuestion]:
    named = [words[label] for label in labels.tolist()]
    return [ImageQuestion(i, question, word, word) for i, word in enumerate(named)]


def _fashion(folder: Path) -> dict[str, Raw]:
    arrays = npz(folder, "fashion", "fashion.npz")
    return {
        part: (arrays[f"x_{part}"], _names("What garment is this?", GARMENTS, arrays[f"y_{part}"]))
        for part in ("train", "test")
    }


def _signs(folder: Path) -> dict[str, Raw]:
    arrays, kinds = npz(folder, "gtsrb", "gtsrb32.npz"), [SIGNS[i] for i in range(len(SIGNS))]
    return {
        part: (arrays[f"x_{part}"], _names("What kind of sign is this?", kinds, arrays[f"y_{part}"]))
        for part in ("train", "test")
    }


def _photos(folder: Path) -> dict[str, Raw]:
    """Ask of every second photograph what it shows, of the others whether it is an animal."""
    arrays = npz(folder, "cifar10", "cifar10.npz")

    def asked(labels: np.ndarray) -> list[ImageQuestion]:
        named = _names("What is this?", THINGS, labels)
        for i in range(1, len(named), 2):
            word = named[i].answer
            named[i] = ImageQuestion(i, "Is this an animal?", "no" if word in VEHICLES else "yes", word)
        return named

    return {part: (arrays[f"x_{part}"], asked(arrays[f"y_{part}"])) for part in ("train", "test")}


def _count(folder: Path) -> dict[str, Raw]:
    """Put one to four handwritten digits of 16 × 16 into quarters of an image that is black elsewhere."""
    arrays, made = npz(folder, "usps", "usps_t.npz"), {}
    for part, count in (("train", 2500), ("test", 600)):
        draw = np.random.default_rng(seed_of("continual", "count", part))
        digits, images = arrays[f"x_{part}"], np.zeros((count, SIDE, SIDE), np.uint8)
        numbers = draw.integers(1, MOST_DIGITS + 1, size=count)
        for image, number in zip(images, numbers, strict=True):
            for quarter in draw.permutation(4)[:number]:
                y, x = SIDE // 2 * (quarter // 2), SIDE // 2 * (quarter % 2)
                image[y : y + SIDE // 2, x : x + SIDE // 2] = digits[draw.integers(len(digits))]
        made[part] = images, _names("How many digits are there?", NUMBERS, numbers)
    return made


def _kannada(folder: Path) -> tuple[Mapping[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the arrays, and which images are of each part."""
    arrays = npz(folder, "kannada", "kannada_test.npz")
    order = np.random.default_rng(seed_of("continual", "kannada", "parts")).permutation(len(arrays["y"]))
    cut = len(order) // 5
    return arrays, {"train": order[cut:], "test": order[:cut]}


def _numbers(folder: Path) -> dict[str, Raw]:
    arrays, chosen = _kannada(folder)
    return {
        part: (arrays["x"][rows], _names("Which number is written?", NUMBERS, arrays["y"][rows]))
        for part, rows in chosen.items()
    }


STROKES = {
    "thickness": ("Is the stroke thick or thin?", "thin", "thick"),
    "slant": ("Does it lean left or right?", "left", "right"),
    "width": ("Is it narrow or wide?", "narrow", "wide"),
}
"""What was measured -> the question, and what is said below and above the median."""


def _strokes(folder: Path) -> dict[str, Raw]:
    arrays, chosen = _kannada(folder)
    columns = [arrays["morpho_cols"].tolist().index(name) for name in STROKES]
    measured = arrays["morpho"][:, columns]
    above = measured > np.median(measured, 0)
    asked = {
        part: [
            ImageQuestion(i, question, word, word)
            for i, row in enumerate(rows.tolist())
            for question, *words in [list(STROKES.values())[i % 3]]
            for word in [words[int(above[row, i % 3])]]
        ]
        for part, rows in chosen.items()
    }
    return {part: (arrays["x"][rows], asked[part]) for part, rows in chosen.items()}


def _shapes(folder: Path) -> dict[str, Raw]:
    images = npz(folder, "easyvqa", "images64.npz")
    return {
        part: (
            images[f"images_{part}"],
            _asked_of_shapes(json.loads((folder / "easyvqa" / f"{part}_questions.json").read_text())),
        )
        for part in ("train", "test")
    }


def _asked_of_shapes(triples: Sequence[tuple[str, str, int]]) -> list[ImageQuestion]:
    """Return what is asked of each image, once with yes or no, and all else."""
    shown: dict[int, set[str]] = defaultdict(set)
    for question, answer, image in triples:
        shown[image] |= {word for word in (answer, *question.rstrip("?").split()) if answer not in YES_NO}
    asked, guessed = [], set()
    for question, answer, image in triples:
        if answer in YES_NO and image in guessed:
            continue
        if answer in YES_NO:
            guessed.add(image)
        words = [word for word in (*COLOURS, *SHAPES) if word in shown[image]]
        asked.append(ImageQuestion(image, *_plain(question, answer), " ".join(words) or answer))
    return asked


YES_NO = ("yes", "no")


def _plain(question: str, answer: str) -> tuple[str, str]:
    """Return question and answer in a few words, where nothing is asked by its contrary."""
    words = question.rstrip("?").split()
    if answer not in YES_NO:
        return f"What {'color' if answer in COLOURS else 'shape'} is it?", answer
    guess = next(word for word in words if word in (*COLOURS, *SHAPES))
    if "not" in words or "no" in words:
        answer = YES_NO[answer == "yes"]
    return f"Is it {'a ' if guess in SHAPES else ''}{guess}?", answer


TASKS = {
    task.name: task
    for task in (
        ImageTask("fashion", _fashion, "zalando-datasets/fashion_mnist"),
        ImageTask("numbers", _numbers, "vinayprabhu/Kannada_MNIST on GitHub"),
        ImageTask("shapes", _shapes, "vzhou842/easy-VQA on GitHub"),
        ImageTask("count", _count, "flwrlabs/usps, put together"),
        ImageTask("signs", _signs, "GTSRB, benchmark.ini.rub.de"),
        ImageTask("photos", _photos, "uoft-cs/cifar10"),
        ImageTask("strokes", _strokes, "vinayprabhu/Kannada_MNIST on GitHub, as its authors measured it"),
    )
}
