"""Unlabelled inputs of a task as a user has them: images and prompts, in a file of JSON lines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.replication.cache import Result, cached
from benchmarks.replication.multimodal.reader import PromptRow

__all__ = ["write_inputs"]

FILE = "inputs.jsonl"


def write_inputs(rows: Sequence[PromptRow], folder: Path) -> Path:
    """Return the file with the prompts and images of these rows, which is written unless it is there."""

    def make(part: Path, _: Result) -> None:
        from PIL import Image

        lines = []
        for number, row in enumerate(rows):
            name = f"{number}.png"
            Image.fromarray(row.inputs["image"][0]).save(part / name)
            lines.append(json.dumps({"image": name, "text": row.prompt}))
        (part / FILE).write_text("\n".join(lines) + "\n")

    cached(folder, {"inputs": len(rows)}, make)
    return folder / FILE
