"""A folder that has something of each task."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["TaskFolder"]


@dataclass(frozen=True)
class TaskFolder:
    """A folder with a file for each task: where it is, and how the recipe names it, if it does."""

    path: Path
    named: str = ""

    def file(self, task: str) -> Path:
        """Return the place of a task's file."""
        return self.path / f"{task}.safetensors"
