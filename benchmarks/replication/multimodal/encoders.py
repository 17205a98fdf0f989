"""The encoders: the vision suites' ViT, tuned as a classifier of pictures, and the encoder of Whisper."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.console import Say, silent
from benchmarks.replication.cache import Result, timed
from benchmarks.replication.loop import linear, minimise, paced, tenths
from benchmarks.replication.multimodal.inputs import ANIMALS, DIGITS, Sets, degraded
from benchmarks.replication.rows import seed_of

__all__ = ["PIXELS", "EncoderTraining", "write_image_encoder"]

WORDS = (*DIGITS, *ANIMALS)
PIXELS = {"mean": 0.5, "deviation": 0.5}
"""What the ViT was trained with: pixels in [−1, 1]."""
EncoderTraining = Mapping[str, Any]
"""steps, rate, batch."""


def write_image_encoder(
    base: Path, folder: Path, sets: Sets, training: EncoderTraining, measured: Result, say: Say = silent
) -> None:
    """Tune the vision suites' base on pictures of digits and animals, and write it as a `ViTModel`.

    A ViT that has only seen formulas tells animals apart no better than half of the time. Its classifier,
    which reads the mean of its tokens, is thrown away.
    """
    from transformers import ViTModel

    torch.manual_seed(seed_of("multimodal", "encoder"))
    model = ViTModel.from_pretrained(base, add_pooling_layer=False).train()
    classifier = nn.Linear(model.config.hidden_size, len(WORDS))
    with timed(measured):
        measured["losses"] = _fit(model, classifier, sets, training, say)
    model.eval().save_pretrained(folder)
    measured["accuracy"] = {kind: _accuracy(model, classifier, sets[kind]["test"]) for kind in sets}


def _fit(model: Any, classifier: nn.Module, sets: Sets, training: EncoderTraining, say: Say) -> list[float]:
    weights = [*model.parameters(), *classifier.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=training["rate"], weight_decay=0.05)
    schedule = paced(optimizer, linear(training["steps"], 50))
    draw = np.random.default_rng(0)

    def loss_of(_: int) -> torch.Tensor:
        images, words = [], []
        for number in range(training["batch"]):
            one = sets["animal" if number % 2 else "digit"]["train"]
            place = int(draw.integers(len(one.words)))
            images.append(_varied(one.inputs[place], one.words[place] in ANIMALS, draw))
            words.append(WORDS.index(one.words[place]))
        return cross_entropy(classifier(_means(model, images)), torch.tensor(words))

    def after(step: int, loss: torch.Tensor) -> None:
        if (step + 1) % 100 == 0:
            say(f"{step + 1} of {training['steps']} steps, loss {loss.item():.3f}")

    steps = range(training["steps"])
    return tenths(minimise(loss_of, weights, optimizer, schedule, steps, 1.0, after))


def _varied(image: np.ndarray, turned: bool, draw: np.random.Generator) -> np.ndarray:
    """Return an image moved by up to two pixels, half of the animals turned round, and some with noise."""
    moved = np.roll(image, draw.integers(-2, 3, size=2), (0, 1))
    if turned and draw.random() < 0.5:
        moved = moved[:, ::-1]
    return degraded("image", moved, 1.5 * draw.random(), draw) if draw.random() < 0.3 else moved


def _means(model: Any, images: list[np.ndarray]) -> torch.Tensor:
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
    means: torch.Tensor = model(pixel_values=pixels).last_hidden_state.mean(1)
    return means


@torch.inference_mode()
def _accuracy(model: Any, classifier: nn.Module, part: Any) -> float:
    """Return the accuracy on all inputs of a part, among all words."""
    right = 0
    for at in range(0, len(part.words), 250):
        means = _means(model, part.inputs[at : at + 250])
        answers = [WORDS[i] for i in classifier(means).argmax(-1).tolist()]
        right += sum(a == b for a, b in zip(answers, part.words[at : at + 250], strict=True))
    return right / len(part.words)
