"""The skills one after another: each is added to a state as it comes, and its export is the merge (LPM)."""

from __future__ import annotations

import sys
from pathlib import Path

import submerge
from benchmarks.process import measure
from benchmarks.replication.cache import Result, cached, timed
from benchmarks.replication.methods import Merge
from benchmarks.replication.skills.merge import LORA, SkillsBench

__all__ = ["SkillsInSequence"]

SAMPLES = 128
"""Prompts of a skill from which its moments are taken."""


class SkillsInSequence(SkillsBench):
    """The same bench, whose merge is the export of a state that grew by one skill after another."""

    def merge(self, row: Merge, scale: float | None, part: Path, tasks: int | None = None) -> Path:
        """Export the merge of all skills at a scale; return the new folder."""
        out = part / "merged"
        submerge.Continual(self._state()).export(out, scale=scale, overwrite=True)
        return out

    def _state(self) -> Path:
        """Return the state of all skills; it is grown unless it is there."""
        folder = self.cache.result(self.seed, LORA, "state")

        def make(part: Path, measured: Result) -> None:
            state = submerge.Continual.begin(part / "state", str(self.base))
            prompts = self.prompts(SAMPLES)
            for skill, adapter in self.adapters.items():
                with timed(measured, f"seconds_of_{skill}"):
                    measured[f"warnings_of_{skill}"] = state.add(skill, str(adapter), prompts[skill])

        cached(folder, self.config({"samples": SAMPLES}), make)
        return folder / "state"

    def _cost(self, part: Path, out: Path) -> dict[str, float]:
        """Return time and peak memory of the export, done once more as a process."""
        command = [sys.executable, "-m", "submerge", "many", "export", str(self._state()), "-o", str(out)]
        run = measure([*command, "--overwrite"], part / "merge.log")
        return {"seconds": round(run.seconds, 2), "peak_bytes": run.peak_bytes}
