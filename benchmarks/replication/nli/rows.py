"""The rows whose coefficients are learned without labels, beside the merges that all suites have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["LEARNED", "Learned"]


@dataclass(frozen=True)
class Learned:
    """A row: what `learn_coefficients` is called with, or, by `entropy`, AdaMerging."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    inputs: int = 64
    steps: int = 100
    rate: float = 1e-3
    batch: int = 4
    entropy: bool = False

    def facts(self) -> dict[str, Any]:
        """Return what decides about the result, for a marker."""
        names = ("inputs", "steps", "rate", "batch", "entropy")
        return {"settings": dict(self.settings)} | {name: getattr(self, name) for name in names}


Q_MIDDLE = {"hooks": r"layers\.(1[6-9]|2[0-2])\..*q_proj"}
"""Inputs of `q_proj` in the third quarter, where the ratio falls with λ."""
PAPER = {"hooks": r"layers\.2[3-9]\..*v_proj"}
"""Inputs of `v_proj` in the last quarter of the 30 layers, as the paper's code has it."""
ALL = {"where_rising": "learn"}
"""Also move coefficients of adapters whose ratio does not fall with λ."""

LEARNED = (
    Learned("nsc"),
    Learned("nsc_learn", ALL),
    Learned("nsc_match", {"objective": "match"}),
    Learned("nsc_match_fast", {"objective": "match"}, rate=1e-2),
    Learned("nsc_paper", ALL | PAPER, rate=3e-4),
    Learned("nsc_all_layers", ALL | {"hooks": "."}),
    Learned("nsc_q_middle", ALL | Q_MIDDLE),
    Learned("nsc_16", ALL, inputs=16),
    Learned("nsc_256", ALL, inputs=256),
    Learned("adamerging", entropy=True),
)
