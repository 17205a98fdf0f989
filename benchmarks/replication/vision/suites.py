"""The suites on the ViT: vision-8, vision-14 and vision-20, full fine-tunes; hetero-20, adapters."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from benchmarks.console import say
from benchmarks.replication.suite import Base, Suite, Training
from benchmarks.replication.vision.base import Pretraining, pretrain
from benchmarks.replication.vision.pictures import PICTURES
from benchmarks.replication.vision.targets import MEASURED
from benchmarks.replication.vision.tasks import NAMED

__all__ = ["HETERO_20", "VISION_8", "VISION_14", "VISION_20"]


def _base(home: str, how: Pretraining) -> Base:
    return Base(partial(_write, how=how), home, how.config())


def _write(folder: Path, *, how: Pretraining) -> None:
    pretrain(folder, how, say)


KNOWN = NAMED | MEASURED
BASE = _base("vision", Pretraining(steps=4000))
SHORT = _base("vision-fast", Pretraining(steps=300, warmup=50))

_VISION = Suite(
    name="vision",
    known=KNOWN,
    tasks=tuple(NAMED),
    trainings={"full": Training(steps=300, rate=7e-4, batch=32, decay=0.0)},
    base=BASE,
    domain=PICTURES,
    most_train=4000,
    shots=2,  # with ten, or even three, the base does digits too well for them to be admitted
    generic=40,
    fast_tasks=("fashion", "farsi", "usps"),
    fast_base=SHORT,
)
"""All candidates. Heads and specialists are its own, so that the suites below share them."""

_8 = ("mnist", "fashion", "notmnist", "bangla", "speakers", "gtsrb", "cifar10", "greek")
_14 = (*_8, "kannada", "devanagari", "usps", "bccd", "latin", "sanskrit")
_20 = (*_14, "dig", "digits", "katakana", "korean", "balinese", "tagalog")

VISION_8 = _VISION.part("vision-8", _8)
VISION_14 = _VISION.part("vision-14", _14)
VISION_20 = _VISION.part("vision-20", _20)

_CLASSES = (
    "notmnist",
    "bangla",
    "digits",
    "speakers",
    "bccd",
    "mnist",
    "gtsrb",
    "dig",
    "devanagari",
    "usps",
    "korean",
    "kannada",
    "fashion",
)

_HETERO = _VISION.cut(
    name="hetero",
    tasks=(*_CLASSES, *MEASURED),
    trainings={"lora": Training(steps=300, rate=1e-3, rank=8, alpha=16, batch=32, decay=0.0)},
    observed=("notmnist", "smears"),
    fast_tasks=("fashion", "slant", "figures"),
)
_LEFT_OUT = (
    *("dig", "korean", "kannada"),  # more names than numbers and masks
    *("angle", "red_cells"),  # the base does the one well already, and nothing here learns the other
)
HETERO_20 = _HETERO.part("hetero-20", tuple(task for task in _HETERO.tasks if task not in _LEFT_OUT))
