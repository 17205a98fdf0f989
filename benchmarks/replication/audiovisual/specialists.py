"""Trains the specialists of one modality each, and one model jointly, as references.

Two ways: *naive* has one LoRA for all tokens; *decoupled* (DAMC) has a language LoRA for text tokens and
a modality LoRA for soft tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import gelu

from benchmarks.replication import cache as store
from benchmarks.replication.audiovisual.encoders import Features, centre
from benchmarks.replication.audiovisual.items import SOFT_TOKENS, STREAMS, InputPool, batch, draw
from benchmarks.replication.audiovisual.modalities import MODALITIES
from benchmarks.replication.cache import Result, cached, timed
from benchmarks.replication.lm import pretrain, updates
from benchmarks.replication.lm.fit import Tuning, fit
from benchmarks.replication.lm.streams import TEXT, StreamedLM, StreamUpdates, TokenBatch
from benchmarks.replication.lm.updates import Updates, load_adapter, parameters, save_adapter
from benchmarks.replication.lm.words import ONE
from benchmarks.replication.rows import seed_of

__all__ = ["LANGUAGE", "WAYS", "FeatureProjector", "load", "stream_updates", "train"]

WAYS = ("decoupled", "naive")
LANGUAGE = "language"
"""Folder of the LoRA that is merged."""
NEW_SHARE = 0.3
"""Of the questions; the others are those that the LM knows about words."""
NEW = {modality.slot: modality.new for modality in MODALITIES}


class FeatureProjector(nn.Module):
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
        tokens: torch.Tensor = self.second(hidden).unflatten(-1, (SOFT_TOKENS, -1))
        return tokens


def stream_updates(way: str, language: Updates, modality: Mapping[str, Updates]) -> list[StreamUpdates]:
    """Return which tokens take which update: all take `language` in the naive way, else text alone does."""
    if way == "naive":
        return [StreamUpdates(language)]
    of_modality = (StreamUpdates(one, (STREAMS[slot],)) for slot, one in modality.items())
    return [StreamUpdates(language, (TEXT,)), *of_modality]


def train(
    lm: Path,
    features: Mapping[str, Mapping[str, Features]],
    folder: Path,
    slots: Sequence[str],
    way: str,
    seed: int,
    tuning: Tuning,
) -> Result:
    """Train on the questions of these modalities, unless the folder has it; return the marker.

    One modality is a specialist. Several share one language LoRA, and as many steps as their specialists
    have together. All of a seed begin with the same A. `features` are slot -> part -> features.
    """
    config = {"slots": list(slots), "way": way, "seed": seed, "tuning": tuning.config(), "new": NEW_SHARE}
    config["lm"] = (store.read(lm) or {})["config"]

    def make(part: Path, measured: Result) -> None:
        draw_seed = seed_of("specialist", seed, way, *slots)
        torch.manual_seed(draw_seed)
        model = pretrain.load(lm).requires_grad_(False)
        width = model.config.hidden_size
        projectors = {slot: FeatureProjector(width, *centre(features[slot])) for slot in slots}
        language = updates.new(model, tuning.rank, seed_of("A", seed))
        apart = [] if way == "naive" else slots
        modality = {slot: updates.new(model, tuning.rank, seed_of("A", seed, slot)) for slot in apart}
        streamed = StreamedLM(model, projectors)
        sample = _sampler({slot: features[slot]["train"] for slot in slots}, slots, tuning.batch, draw_seed)
        projecting = [p for one in projectors.values() for p in one.parameters()]
        adapting = [p for one in (language, *modality.values()) for p in parameters(one)]
        count = len(slots)
        with timed(measured):
            first = fit(streamed, projecting, sample, count * tuning.first, tuning.first_rate, tuning.warmup)
            streamed.updates = stream_updates(way, language, modality)
            weights = projecting + adapting
            then = fit(streamed, weights, sample, count * tuning.steps, tuning.rate, tuning.warmup)
        measured["losses"] = first + then
        save_adapter(language, part / LANGUAGE, lm)
        for slot, one in modality.items():
            save_adapter(one, part / slot, lm)
        for slot, projector in projectors.items():
            save_file(dict(projector.state_dict()), part / f"projector-{slot}.safetensors")

    return cached(folder, config, make)


def load(
    folder: Path, slots: Sequence[str], way: str
) -> tuple[dict[str, FeatureProjector], dict[str, Updates]]:
    """Return projectors, and the updates of soft tokens, of these modalities."""
    projectors: dict[str, FeatureProjector] = {}
    modality: dict[str, Updates] = {}
    for slot in slots:
        state = load_file(folder / f"projector-{slot}.safetensors")
        width = state["second.bias"].numel() // SOFT_TOKENS
        projectors[slot] = FeatureProjector(width, state["mean"], state["deviation"])
        projectors[slot].load_state_dict(state)
        if way != "naive":
            modality[slot] = load_adapter(folder / slot)
    return projectors, modality


def _sampler(
    features: Mapping[str, Features], slots: Sequence[str], size: int, seed: int
) -> Callable[[int], TokenBatch]:
    """Return a function that draws the batch of a step; every second one has noisy inputs."""
    pool, generator = InputPool(features), np.random.default_rng(seed)
    known = [one.name for one in ONE]

    def sample(step: int) -> TokenBatch:
        items = []
        for _ in range(size):
            slot = slots[generator.integers(len(slots))]
            names = [NEW[slot]] if generator.random() < NEW_SHARE else known
            items.append(draw(pool, names, [slot], generator, noisy=step % 2 == 1))
        return batch(items, features)

    return sample
