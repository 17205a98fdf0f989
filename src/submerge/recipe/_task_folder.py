"""A folder that has something of each task."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from submerge.recipe._problems import Report, show

__all__ = ["TaskFolder", "read_task_folder"]


@dataclass(frozen=True)
class TaskFolder:
    """A folder with a file for each task: where it is, and how the recipe names it, if it does."""

    path: Path
    named: str = ""

    def file(self, task: str) -> Path:
        """Return the place of a task's file."""
        return self.path / f"{task}.safetensors"


def read_task_folder(raw: Any, key: str, report: Report) -> TaskFolder | None:
    """Return the folder that a recipe names under a key; None where it names none, or on a problem."""
    if raw is None:
        return None
    if isinstance(raw, str):
        return TaskFolder(Path(raw).expanduser(), raw)
    report.add(f"{key} are in a folder, and not {show(raw)}", (key,), f"name it: '{key}: out.{key}'")
    return None
