"""Trains the specialists of one modality each, and one model jointly, as references.

Two ways: *naive* has one LoRA for all tokens; *decoupled* (DAMC) has a language LoRA for text tokens and
a modality LoRA for soft tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path as Folder
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import gelu

from benchmarks.replication import cache as store
from benchmarks.replication.audiovisual.encoders import Features, centre
from benchmarks.replication.audiovisual.items import SOFT_TOKENS, STREAMS, Pool, batch, draw
from benchmarks.replication.audiovisual.senses import SENSES
from benchmarks.replication.lm import school
from benchmarks.replication.lm.fit import Tuning, fit
from benchmarks.replication.lm.streams import TEXT, Batch, Path, Reader
from benchmarks.replication.lm.updates import Updates, adapter, factors, parameters, save_adapter
from benchmarks.replication.lm.words import ONE
from benchmarks.replication.suite import seed_of

__all__ = ["JOINT", "LANGUAGE", "WAYS", "Projector", "load", "paths", "train"]

WAYS = ("decoupled", "naive")
JOINT = "joint"
"""Name of the model that is trained on the questions of all modalities together."""
LANGUAGE = "language"
"""Folder of the LoRA that is merged."""
NEW_SHARE = 0.3
"""Of the questions; the others are those that the LM knows about words."""
NEW = {sense.slot: sense.new for sense in SENSES}


class Projector(nn.Module):
    """Turns features into soft tokens: their z-score through a map with one hidden layer."""

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, width: int, mean: torch.Tensor, deviation: torch.Tensor, hidden: int = 128) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)
        self.first = nn.Linear(len(mean), hidden)
        self.second = nn.Linear(hidden, SOFT_TOKENS * width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return tokens, shape [k, tokens, width]."""
        hidden = gelu(self.first((x - self.mean) / self.deviation))
        found: torch.Tensor = self.second(hidden).unflatten(-1, (SOFT_TOKENS, -1))
        return found


def paths(way: str, language: Updates, modality: Mapping[str, Updates]) -> list[Path]:
    """Return which tokens take which update: all take `language` in the naive way, else text alone does."""
    if way == "naive":
        return [Path(language)]
    return [Path(language, (TEXT,)), *(Path(one, (STREAMS[slot],)) for slot, one in modality.items())]


def train(
    lm: Folder,
    features: Mapping[str, Mapping[str, Features]],
    folder: Folder,
    slots: Sequence[str],
    way: str,
    seed: int,
    tuning: Tuning,
) -> dict[str, Any]:
    """Train on the questions of these modalities, unless the folder has it; return the marker.

    One modality is a specialist. Several share one language LoRA, and as many steps as their specialists
    have together. All of a seed begin with the same A. `features` are slot -> part -> features.
    """
    config = {"slots": list(slots), "way": way, "seed": seed, "tuning": tuning.config(), "new": NEW_SHARE}
    config["lm"] = (store.read(lm) or {})["config"]
    if (found := store.done(folder, config)) is not None:
        return found
    draw_seed = seed_of("specialist", seed, way, *slots)
    torch.manual_seed(draw_seed)
    model = school.load(lm).requires_grad_(False)
    projectors = nn.ModuleDict(
        {slot: Projector(model.config.hidden_size, *centre(features[slot])) for slot in slots}
    )
    language = factors(model, tuning.rank, seed_of("A", seed))
    modality = {slot: factors(model, tuning.rank, seed_of("A", seed, slot)) for slot in slots}
    if way == "naive":
        modality = {}
    reader = Reader(model, projectors)
    sample = _sampler({slot: features[slot]["train"] for slot in slots}, slots, tuning.batch, draw_seed)
    projecting = list(projectors.parameters())
    adapting = [p for one in (language, *modality.values()) for p in parameters(one)]
    with store.write_whole(folder, config) as (part, measured):
        started = time.perf_counter()
        count = len(slots)
        first = fit(reader, projecting, sample, count * tuning.first, tuning.first_rate, tuning.warmup)
        reader.paths = paths(way, language, modality)
        weights = projecting + adapting
        then = fit(reader, weights, sample, count * tuning.steps, tuning.rate, tuning.warmup)
        measured["losses"], measured["seconds"] = first + then, round(time.perf_counter() - started, 1)
        save_adapter(language, part / LANGUAGE, lm)
        for slot, one in modality.items():
            save_adapter(one, part / slot, lm)
        for slot, projector in projectors.items():
            save_file(dict(projector.state_dict()), part / f"projector-{slot}.safetensors")
    done = store.read(folder)
    assert done is not None
    return done


def load(folder: Folder, slots: Sequence[str], way: str) -> tuple[dict[str, Projector], dict[str, Updates]]:
    """Return projectors, and the updates of soft tokens, of these modalities."""
    projectors, modality = {}, {}
    for slot in slots:
        state = load_file(folder / f"projector-{slot}.safetensors")
        width = state["second.bias"].numel() // SOFT_TOKENS
        projectors[slot] = Projector(width, state["mean"], state["deviation"])
        projectors[slot].load_state_dict(state)
        if way != "naive":
            modality[slot] = adapter(folder / slot)
    return projectors, modality


def _sampler(
    features: Mapping[str, Features], slots: Sequence[str], size: int, seed: int
) -> Callable[[int], Batch]:
    """Return a function that draws the batch of a step; every second one has noisy inputs."""
    pool, generator = Pool(features), np.random.default_rng(seed)
    known = [one.name for one in ONE]

    def sample(step: int) -> Batch:
        items = []
        for _ in range(size):
            slot = slots[generator.integers(len(slots))]
            names = [NEW[slot]] if generator.random() < NEW_SHARE else known
            items.append(draw(pool, names, [slot], generator, noisy=step % 2 == 1))
        return batch(items, features)

    return sample
