"""The rows of the suite: what is no merge, and merges besides those of every suite."""

from __future__ import annotations

from benchmarks.replication.audiovisual.items import STREAMS
from benchmarks.replication.methods import Merge

__all__ = ["CEILINGS", "EXTRA", "INDIVIDUAL", "JOINT", "NOTHING"]

JOINT = "joint"
"""Name of the model that is trained on the questions of all modalities together."""
NOTHING, INDIVIDUAL = "no language LoRA", "individual"
CEILINGS = (
    NOTHING,
    *(f"{slot} alone" for slot in STREAMS),
    *(f"{slot}'s LoRA" for slot in STREAMS),
    INDIVIDUAL,
    JOINT,
)
"""Rows that are not merges.

*Alone* is a specialist as it is: it reads its own modality only. Its *LoRA* for all text is the composition
with all projectors and modality LoRAs, without a merge. *Individual* is each specialist on its own questions.
"""

EXTRA = tuple(
    Merge(f"ssam_{rank}", "scale", shared={"rank": rank}, method="ssam", kinds=("lora",), form="adapter")
    for rank in (12, 24, 48)
)
"""Besides the rows of every suite: SSAM at 1/4, 1/2 and all of the ranks' sum."""
