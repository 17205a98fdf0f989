"""Trains the specialists of the suite, and one model jointly; what each could do alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.console import Say, silent
from benchmarks.replication import cache as store
from benchmarks.replication.cache import Result, cached, timed
from benchmarks.replication.multimodal import training as fitting
from benchmarks.replication.multimodal.decoupled import Decoupled, DecoupledTraining
from benchmarks.replication.multimodal.inputs import Sets
from benchmarks.replication.multimodal.probes import PROBES, without
from benchmarks.replication.multimodal.questions import SHARED, SKILLS, draw_rows
from benchmarks.replication.multimodal.reader import ModalityReader, PromptRow
from benchmarks.replication.rows import seed_of

__all__ = ["right_share", "scores_alone", "train"]


def train(
    unions: Mapping[str, Path],
    sets: Mapping[str, Sets],
    folder: Path,
    training: DecoupledTraining,
    seed: int,
    say: Say = silent,
) -> Result:
    """Train on the questions of these modalities, unless the folder has it; return the marker.

    One modality is a specialist. Several share one language LoRA, and as many steps as their specialists
    have together.
    """
    config = {"modalities": list(unions), "seed": seed, "training": training.config()}
    config["models"] = {name: (store.read(path) or {})["config"] for name, path in unions.items()}
    longer = replace(training, steps=len(unions) * training.steps)

    def make(part: Path, measured: Result) -> None:
        draw = seed_of("multimodal", seed, *unions)
        generator, rows = np.random.default_rng(draw), []
        for modality in unions:
            names = [*SHARED, SKILLS[modality]]
            rows += draw_rows(sets, modality, "train", names, training.steps * training.batch, generator)
        with timed(measured):
            measured["losses"] = fitting.train(unions, rows, part, longer, draw, say)

    return cached(folder, config, make)


def scores_alone(
    folder: Path,
    modality: str,
    training: DecoupledTraining,
    sets: Mapping[str, Sets],
    parts: Mapping[str, int],
) -> dict[str, dict[str, float]]:
    """Return part -> probe -> accuracy of a specialist as it is; inputs of other modalities are left out."""
    reader = ModalityReader(folder, modality)
    model = Decoupled([reader], training, folder)
    result: dict[str, dict[str, float]] = {}
    for part, count in parts.items():
        mine = [probe for probe in PROBES if modality in probe.modalities]
        asked = {probe.name: without(probe.items(sets, part, count), modality) for probe in mine}
        result[part] = {name: _accuracy(model, reader, rows) for name, rows in asked.items()}
    return result


def _accuracy(model: Decoupled, reader: ModalityReader, rows: Sequence[PromptRow]) -> float:
    return right_share(model.first_tokens(reader.encode(rows)), rows, reader.processor.tokenizer)


def right_share(tokens: Sequence[int], rows: Sequence[PromptRow], tokenizer: Any) -> float:
    """Return for how many rows the likeliest next token is the first of the answer."""
    firsts = [tokenizer(row.answer, add_special_tokens=False).input_ids[0] for row in rows]
    return sum(a == b for a, b in zip(tokens, firsts, strict=True)) / len(rows)
