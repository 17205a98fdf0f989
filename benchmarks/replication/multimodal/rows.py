"""The rows of the suite: what is no merge, and merges of the language LoRAs by every method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.replication.methods import AVERAGE, ROWS, Merge

__all__ = [
    "COMPOSED",
    "DECOUPLED",
    "JOINT_MODEL",
    "METHODS",
    "NAIVE",
    "SSAM_RANKS",
    "ComposedRow",
    "merges",
]

DECOUPLED, NAIVE = "decoupled", "naive"
"""How specialists are trained: with a LoRA for text and one for the modality's tokens, or one for all."""

JOINT_MODEL = "joint"
"""Name of the model that is trained on the questions of all modalities together."""


@dataclass(frozen=True)
class ComposedRow:
    """A composed model that is no merge: which specialists' language LoRAs act on text, summed as they are.

    `trained` names another training whose modules and LoRAs are taken.
    """

    name: str
    language: tuple[str, ...] = ()
    trained: str = ""


COMPOSED = (
    ComposedRow("no language LoRA"),
    ComposedRow("image's LoRA", ("image",)),
    ComposedRow("audio's LoRA", ("audio",)),
    ComposedRow(JOINT_MODEL, ("image",), JOINT_MODEL),
)

_RANK = 16
SSAM_RANKS = {"ssam_half": _RANK // 2, "ssam": _RANK, "ssam_full": 2 * _RANK}
"""The rank k of SSAM by row: its default, the largest of the adapters', half of it, and the sum of all."""
_EXTRA = tuple(
    Merge(name, "scale", shared={"rank": rank}, method="ssam", kinds=("lora",), form="adapter")
    for name, rank in SSAM_RANKS.items()
    if name != "ssam"
)
_NAMES = ("ssam", "task_arithmetic", "ties", "knots_ties", "tsv_m", "iso_c", "wudi")
_NAIVE = Merge("naive_average", each={"weight": 1.0}, method="linear", kinds=("lora",))
"""NaiveMC: the average of specialists that have one LoRA for all tokens, with which all tokens run."""
_MERGES = {
    DECOUPLED: (AVERAGE, *(row for name in _NAMES for row in ROWS if row.name == name), *_EXTRA),
    NAIVE: (_NAIVE,),
}
METHODS = tuple(row for rows in _MERGES.values() for row in rows)


def merges(names: Sequence[str] | None, way: str = DECOUPLED) -> list[Merge]:
    """Return the merges of specialists trained in one way that are asked for, all where nothing is said."""
    return [row for row in _MERGES[way] if names is None or row.name in names]
