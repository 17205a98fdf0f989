"""Trains a projector and a LoRA: on one task, on all together, or on one task after another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import gelu

from benchmarks.replication import cache as store
from benchmarks.replication.cache import Result, cached, timed
from benchmarks.replication.continual.encoder import CHANNELS, PATCHES, EncodedPart
from benchmarks.replication.continual.tasks import Asked
from benchmarks.replication.lm import pretrain, updates
from benchmarks.replication.lm.fit import Tuning, fit
from benchmarks.replication.lm.streams import TEXT, SoftTokens, StreamedLM, StreamUpdates, TokenBatch
from benchmarks.replication.lm.updates import load_adapter, parameters, save_adapter
from benchmarks.replication.lm.words import SOFT, ids
from benchmarks.replication.rows import seed_of

__all__ = ["LANGUAGE", "PatchProjector", "batch", "projector", "train"]

LANGUAGE = "language"
"""Folder of the LoRA."""
IMAGE = TEXT + 1


class PatchProjector(nn.Module):
    """Turns each patch into a token, by a map with one hidden layer, and adds where it is."""

    def __init__(self, width: int, hidden: int = 128) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(CHANNELS, hidden), nn.Linear(hidden, width)
        self.place = nn.Parameter(torch.zeros(PATCHES, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return tokens, shape [k, 16, width]."""
        tokens: torch.Tensor = self.second(gelu(self.first(x))) + self.place
        return tokens


def projector(folder: Path) -> PatchProjector:
    """Return the projector of a trained folder."""
    state = load_file(folder / "projector.safetensors")
    loaded = PatchProjector(state["place"].shape[1])
    loaded.load_state_dict(state)
    return loaded


def batch(asked: Sequence[Asked], features: torch.Tensor) -> TokenBatch:
    """Return the batch of these questions; an image is 16 soft tokens."""
    heads = ["<s>", "image", *[SOFT] * PATCHES, "."]
    tokens = [ids([*heads, *question.split()]) for _, question, _ in asked]
    shape = len(asked), max(len(one) for one in tokens)
    padded, labels = torch.zeros(shape, dtype=torch.long), torch.full(shape, -100)
    for row, one in enumerate(tokens):
        padded[row, : len(one)] = torch.tensor(one)
        labels[row, len(one) - 1] = ids([asked[row][2]])[0]
    streams = torch.full(shape, TEXT)
    streams[:, 2 : 2 + PATCHES] = IMAGE
    rows = torch.arange(len(asked))
    images = torch.tensor([row for row, _, _ in asked])
    soft = SoftTokens(rows, torch.full_like(rows, 2), features[images])
    return TokenBatch(padded, streams, labels, {"image": soft})


def train(
    lm: Path,
    parts: Mapping[str, EncodedPart],
    folder: Path,
    tuning: Tuning,
    seed: int,
    start: Path | None = None,
) -> Result:
    """Train on the tasks of `parts`, unless the folder has it; return the marker.

    Without `start`, a folder to go on from, projector and LoRA are new, and the same for all tasks of a seed.
    """
    config = {"tasks": list(parts), "seed": seed, "tuning": tuning.config()}
    config["lm"] = (store.read(lm) or {})["config"]
    if start:
        config["start"] = (store.read(start) or {})["config"]

    def make(part: Path, measured: Result) -> None:
        model = pretrain.load(lm).requires_grad_(False)
        torch.manual_seed(seed_of("continual", "projector", seed))
        projecting = projector(start) if start else PatchProjector(model.config.hidden_size)
        if start:
            language = load_adapter(start / LANGUAGE, train=True)
        else:
            language = updates.new(model, tuning.rank, seed_of("continual", "A", seed))
        streamed = StreamedLM(model, {"image": projecting})
        sample = _sampler(parts, tuning.batch, seed_of("continual", seed, *parts))
        weights, count = list(projecting.parameters()), len(parts)
        measured["losses"] = []
        with timed(measured):
            if not start:
                steps = count * tuning.first
                first = fit(streamed, weights, sample, steps, tuning.first_rate, tuning.warmup)
                measured["losses"] += first
            streamed.updates = [StreamUpdates(language)]
            weights += parameters(language)
            then = fit(streamed, weights, sample, count * tuning.steps, tuning.rate, tuning.warmup)
            measured["losses"] += then
        save_adapter(language, part / LANGUAGE, lm)
        save_file(dict(projecting.state_dict()), part / "projector.safetensors")

    return cached(folder, config, make)


def _sampler(parts: Mapping[str, EncodedPart], size: int, seed: int) -> Callable[[int], TokenBatch]:
    """Return a function that draws the batch of a step: of one task, the tasks taking turns."""
    generator, in_turn = np.random.default_rng(seed), list(parts.values())

    def sample(step: int) -> TokenBatch:
        part = in_turn[step % len(in_turn)]
        return batch([part.asked[i] for i in generator.integers(len(part.asked), size=size)], part.features)

    return sample
