"""What can be measured: a number of a picture, or a mask of its pixels."""

from __future__ import annotations

import io
import zipfile
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.replication.rows import DENSE, SCORE, Rows, SuiteTask, one_fifth_apart
from benchmarks.replication.vision.formula import SIZE
from benchmarks.replication.vision.pictures import rows
from benchmarks.replication.vision.tasks import ALPHABETS, TEST_DRAWERS, arrays, drawings

__all__ = ["MEASURED"]

CANVAS = 105
"""Side of Omniglot's drawings, in whose units its strokes are."""


def _scaled(values: np.ndarray) -> np.ndarray:
    """Return values in [0, 1]: 0 and 1 are the hundredths at either end, what lies outside is cut."""
    low, high = np.percentile(values, [1, 99])
    return np.clip((values - low) / (high - low), 0, 1)


def _shape(root: Path, *, column: str) -> tuple[Rows, Rows]:
    """Return Kannada digits and a measure of their handwriting, as the set's authors publish it."""
    data = arrays(root, "kannada", "kannada_test.npz")
    values = data["morpho"][:, list(data["morpho_cols"]).index(column)]
    return one_fifth_apart(rows(data["x"], _scaled(values)))


def _sign(root: Path) -> tuple[Rows, Rows]:
    """Return traffic signs and how much of the picture's width the sign takes."""
    data = arrays(root, "gtsrb", "gtsrb32.npz")
    boxes = [data[f"roi_wh_{part}"] for part in ("train", "test")]
    wide = _scaled(np.concatenate([box[:, 2] - box[:, 0] for box in boxes]))
    cut = len(boxes[0])
    return rows(data["x_train"], wide[:cut]), rows(data["x_test"], wide[cut:])


def _rotated(root: Path, *, folder: str, file: str, most: float = 60.0) -> tuple[Rows, Rows]:
    """Return rotated pictures, and the angle, from −60° to 60°."""
    from PIL import Image

    data, parts = arrays(root, folder, file), []
    draw = np.random.default_rng(0)
    for part, count in (("train", 4000), ("test", 1000)):
        images = data[f"x_{part}"][:count]
        share = draw.random(len(images))
        rotated = [
            np.asarray(Image.fromarray(image).rotate(most * (2 * s - 1), Image.Resampling.BILINEAR))
            for image, s in zip(images, share, strict=True)
        ]
        parts.append(rows(np.stack(rotated), share))
    return parts[0], parts[1]


def _halves(images: np.ndarray) -> np.ndarray:
    """Return the left and the right half of photographs of 48 × 64 at 32 × 32: every crop of three to two."""
    halves = np.concatenate([images[:, :, :SIZE], images[:, :, SIZE:]])
    return halves[:, 8:-8]


def _smears(root: Path, *, masks: bool) -> tuple[Rows, Rows]:
    """Return middles of blood smears, and how many red cells reach in, or where their boxes are."""
    data = arrays(root, "bccd", "bccd.npz")
    images = _halves(data["full64x48"])
    count = len(data["full64x48"])
    shown = np.zeros((count, 48, 64), np.uint8)
    red = np.zeros(2 * count)
    for image, kind, *box in data["boxes"].tolist():
        if kind != 1:
            continue
        x0, y0, x1, y1 = (round(edge / 10) for edge in box)
        shown[image, y0:y1, x0:x1] = 1
        across, down = (x0 + x1) / 2, (y0 + y1) / 2
        if 8 <= down < 40:
            red[image + count * (across >= SIZE)] += 1
    labels = [mask.tobytes() for mask in _halves(shown)] if masks else _scaled(red)
    examples = rows(images, labels)
    of_test = np.tile(np.arange(count) % 5 == 0, 2)  # by photograph
    return [examples[i] for i in np.flatnonzero(~of_test)], [examples[i] for i in np.flatnonzero(of_test)]


def _membranes(root: Path) -> tuple[Rows, Rows]:
    """Return patches of a brain under the electron microscope, and where membranes are."""
    data = arrays(root, "membrane", "membrane256.npz")

    def patches(stack: np.ndarray) -> np.ndarray:
        side = stack.shape[1] // SIZE
        cut = stack.reshape(-1, side, SIZE, side, SIZE).swapaxes(2, 3)
        return cut.reshape(-1, SIZE, SIZE)

    masks = patches(1 - data["labels"])  # in the file the insides are 1
    examples = rows(patches(data["images"]), [np.ascontiguousarray(mask).tobytes() for mask in masks])
    cut = len(examples) // 5  # complete slices, the last ones
    return examples[:-cut], examples[-cut:]


def _first_strokes(root: Path) -> tuple[Rows, Rows]:
    """Return letters of Omniglot, and where the pen went before it was lifted for the first time."""
    strokes = {}
    for part in ("small1", "small2"):
        with zipfile.ZipFile(root / "omniglot" / f"strokes_background_{part}.zip") as archive:
            for file in archive.namelist():
                if file.endswith(".txt"):
                    strokes[Path(file).stem] = archive.read(file)
    train: Rows = []
    test: Rows = []
    for alphabet in ALPHABETS.values():
        for name, _, drawer, drawn in drawings(root, alphabet):
            mask = _ink(strokes[name])
            examples = rows(drawn[None], [mask.tobytes()])
            (test if drawer > TEST_DRAWERS else train).extend(examples)
    return train, test


def _ink(text: bytes) -> np.ndarray:
    """Return where the first stroke of a file is, shape [32, 32]: a line of x, y and time for each point."""
    lines = io.StringIO(text.decode()).read().split("BREAK")[0].split()
    points = np.array([line.split(",")[:2] for line in lines if "," in line], float)
    steps = np.linspace(0, 1, 8)[:, None, None]
    line = (points[:-1] * (1 - steps) + points[1:] * steps).reshape(-1, 2) if len(points) > 1 else points
    x, y = line[:, 0] * SIZE / CANVAS, -line[:, 1] * SIZE / CANVAS
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[y.clip(0, SIZE - 1).astype(int), x.clip(0, SIZE - 1).astype(int)] = 1
    return mask


def _figures(root: Path) -> tuple[Rows, Rows]:
    """Return digits of Farsi that were laid over photographs, and where the digit is."""
    digits, photos = (
        arrays(root, "farsi", "hoda_test20000_first1000pc.npz"),
        arrays(root, "cifar10", "cifar10.npz"),
    )
    draw = np.random.default_rng(0)
    parts = []
    for part, count in (("train", 4000), ("test", 1000)):
        ink = np.pad(digits[f"x_{part}"], ((0, 0), (2, 2), (2, 2)))
        ink = ink[draw.permutation(len(ink))[:count]][..., None] / 255
        behind = photos[f"x_{part}"][draw.permutation(len(photos[f"x_{part}"]))[:count]]
        colour = draw.integers(256, size=(count, 1, 1, 3))
        mixed = np.round(ink * colour + (1 - ink) * behind).astype(np.uint8)
        parts.append(rows(mixed, [(mask > 0.5).astype(np.uint8).tobytes() for mask in ink]))
    return parts[0], parts[1]


MEASURED = {
    task.name: task
    for task in (
        *(
            SuiteTask(name, partial(_shape, column=name), None, SCORE)
            for name in ("slant", "thickness", "width", "height", "length")
        ),
        SuiteTask("sign_width", _sign, None, SCORE),
        SuiteTask("red_cells", partial(_smears, masks=False), None, SCORE),
        SuiteTask("angle", partial(_rotated, folder="fashion", file="fashion.npz"), None, SCORE),
        SuiteTask("membranes", _membranes, None, DENSE),
        SuiteTask("first_strokes", _first_strokes, None, DENSE),
        SuiteTask("smears", partial(_smears, masks=True), None, DENSE),
        SuiteTask("figures", _figures, None, DENSE),
    )
}
"""All tasks of numbers and masks that can be asked for. No set on the Hub is known to give them."""
