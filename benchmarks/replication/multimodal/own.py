"""Decoupled training on rows of one's own.

    python -m benchmarks.replication.multimodal.own MODEL MODALITY ROWS.jsonl OUT --steps 200

MODEL is a folder of a multimodal model with its processor, MODALITY the word that its config has before
`_token_id`, such as image or audio. A line of the rows, whose files lie beside them:

    {"prompt": "…<image>…", "inputs": ["picture.png"], "answer": "a cat"}
"""

from __future__ import annotations

import argparse
import json
import sys
import wave
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.console import say
from benchmarks.replication.multimodal.decoupled import DecoupledTraining
from benchmarks.replication.multimodal.reader import PromptRow
from benchmarks.replication.multimodal.training import train

__all__ = ["main", "read_rows"]

_DEFAULT = DecoupledTraining()


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as it is asked for; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.replication.multimodal.own", description=__doc__
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("modality")
    parser.add_argument("rows", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=_DEFAULT.steps)
    parser.add_argument("--batch", type=int, default=_DEFAULT.batch)
    parser.add_argument("--rank", type=int, default=_DEFAULT.rank)
    parser.add_argument("--rate", type=float, default=_DEFAULT.rate, help="of both LoRAs")
    parser.add_argument("--targets", default=",".join(_DEFAULT.targets), help="maps of each layer")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    training = DecoupledTraining(
        steps=given.steps,
        batch=given.batch,
        rank=given.rank,
        alpha=2 * given.rank,
        rate=given.rate,
        targets=tuple(given.targets.split(",")),
    )
    rows = read_rows(given.rows, given.modality)
    losses = train({given.modality: given.model}, rows, given.out, training, given.seed, say)
    say(f"loss {losses[0]:.3f} at first, {losses[-1]:.3f} at last: {given.out}")
    return 0


def read_rows(file: Path, modality: str) -> list[PromptRow]:
    """Return the rows of a file of JSON lines; pictures are read by PIL, sounds are WAV of 16 bits, mono."""
    rows = []
    for line in file.read_text().splitlines():
        entry = json.loads(line)
        inputs = [_read(file.parent / name) for name in entry["inputs"]]
        rows.append(PromptRow(entry["prompt"], {modality: inputs}, entry["answer"], entry.get("caption", "")))
    return rows


def _read(file: Path) -> np.ndarray:
    if file.suffix == ".wav":
        with wave.open(str(file)) as sound:
            return np.frombuffer(sound.readframes(sound.getnframes()), np.int16).astype(np.float32) / 32768
    from PIL import Image

    return np.asarray(Image.open(file).convert("RGB"))


if __name__ == "__main__":
    sys.exit(main())
