"""Trains a projector and a LoRA: on one task, on all together, or on one task after another."""

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
from benchmarks.replication.continual.encoder import CHANNELS, PATCHES, View
from benchmarks.replication.continual.tasks import Asked
from benchmarks.replication.lm import school
from benchmarks.replication.lm.fit import Tuning, fit
from benchmarks.replication.lm.streams import TEXT, Batch, Path, Reader, Soft
from benchmarks.replication.lm.updates import Factors, adapter, factors, parameters, save_adapter
from benchmarks.replication.lm.words import SOFT, ids
from benchmarks.replication.suite import seed_of

__all__ = ["LANGUAGE", "Projector", "batch", "learn", "projector"]

LANGUAGE = "language"
"""Folder of the LoRA."""
IMAGE = TEXT + 1


class Projector(nn.Module):
    """Turns each patch into a token, by a map with one hidden layer, and adds where it is."""

    def __init__(self, width: int, hidden: int = 128) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(CHANNELS, hidden), nn.Linear(hidden, width)
        self.place = nn.Parameter(torch.zeros(PATCHES, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return tokens, shape [k, 16, width]."""
        found: torch.Tensor = self.second(gelu(self.first(x))) + self.place
        return found


def projector(folder: Folder) -> Projector:
    """Return the projector of a trained folder."""
    state = load_file(folder / "projector.safetensors")
    found = Projector(state["place"].shape[1])
    found.load_state_dict(state)
    return found


def batch(asked: Sequence[Asked], features: torch.Tensor) -> Batch:
    """Return the batch of these questions; an image is 16 soft tokens."""
    heads = ["<s>", "image", *[SOFT] * PATCHES, "."]
    tokens = [ids([*heads, *question.split()]) for _, question, _ in asked]
    shape = len(asked), max(len(one) for one in tokens)
    found, labels = torch.zeros(shape, dtype=torch.long), torch.full(shape, -100)
    for row, one in enumerate(tokens):
        found[row, : len(one)] = torch.tensor(one)
        labels[row, len(one) - 1] = ids([asked[row][2]])[0]
    streams = torch.full(shape, TEXT)
    streams[:, 2 : 2 + PATCHES] = IMAGE
    rows = torch.arange(len(asked))
    images = torch.tensor([row for row, _, _ in asked])
    return Batch(found, streams, labels, {"image": Soft(rows, torch.full_like(rows, 2), features[images])})


def learn(
    lm: Folder,
    views: Mapping[str, View],
    folder: Folder,
    tuning: Tuning,
    seed: int,
    start: Folder | None = None,
) -> dict[str, Any]:
    """Train on the tasks of `views`, unless the folder has it; return the marker.

    Without `start`, a folder to go on from, projector and LoRA are new, and the same for all tasks of a seed.
    """
    config = {"tasks": list(views), "seed": seed, "tuning": tuning.config(), "lm": store.read(lm)["config"]}  # type: ignore[index]
    if start:
        config["start"] = store.read(start)["config"]  # type: ignore[index]
    if (found := store.done(folder, config)) is not None:
        return found
    model = school.load(lm).requires_grad_(False)
    torch.manual_seed(seed_of("continual", "projector", seed))
    projecting = projector(start) if start else Projector(model.config.hidden_size)
    if start:
        language = {
            name: Factors(nn.Parameter(one.a), nn.Parameter(one.b))
            for name, one in adapter(start / LANGUAGE).items()
        }
    else:
        language = factors(model, tuning.rank, seed_of("continual", "A", seed))
    reader = Reader(model, {"image": projecting}, [Path(language)] if start else [])
    sample = _sampler(views, tuning.batch, seed_of("continual", seed, *views))
    weights, losses, count = list(projecting.parameters()), [], len(views)
    with store.write_whole(folder, config) as (part, measured):
        started = time.perf_counter()
        if not start:
            losses += fit(reader, weights, sample, count * tuning.first, tuning.first_rate, tuning.warmup)
            reader.paths = [Path(language)]
        weights += parameters(language)
        losses += fit(reader, weights, sample, count * tuning.steps, tuning.rate, tuning.warmup)
        measured["losses"], measured["seconds"] = losses, round(time.perf_counter() - started, 1)
        save_adapter(language, part / LANGUAGE, lm)
        save_file(dict(projecting.state_dict()), part / "projector.safetensors")
    done = store.read(folder)
    assert done is not None
    return done


def _sampler(views: Mapping[str, View], size: int, seed: int) -> Callable[[int], Batch]:
    """Return a function that draws the batch of a step: of one task, the tasks taking turns."""
    generator, turns = np.random.default_rng(seed), list(views.values())

    def sample(step: int) -> Batch:
        view = turns[step % len(turns)]
        return batch([view.asked[i] for i in generator.integers(len(view.asked), size=size)], view.features)

    return sample
