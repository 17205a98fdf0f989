"""Questions about digits in images, sounds, point sets and words, and how they become batches for the LM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.replication.audiovisual.encoders import Features
from benchmarks.replication.audiovisual.modalities import MODALITIES
from benchmarks.replication.lm.streams import TEXT, SoftTokens, TokenBatch
from benchmarks.replication.lm.words import (
    NUMBERS,
    QUESTIONS,
    SLOTS,
    SOFT,
    Question,
    constant_for,
    ids,
    values_for,
)

__all__ = ["SOFT_TOKENS", "STREAMS", "InputPool", "SlotQuestion", "SlotValue", "batch", "draw"]

SOFT_TOKENS = 2
"""Of every input."""
STREAMS = {modality.slot: number for number, modality in enumerate(MODALITIES, TEXT + 1)}
"""Slot -> stream of its soft tokens."""


@dataclass(frozen=True)
class SlotValue:
    """The number of a slot: in words, or in an input of its modality, of which this is the row."""

    slot: str
    value: int
    row: int | None = None
    noisy: bool = False


@dataclass(frozen=True)
class SlotQuestion:
    """A question about the first of these slots, and a constant."""

    question: Question
    slots: tuple[SlotValue, ...]
    constant: int = 0

    @property
    def answer(self) -> str:
        """Return the right word."""
        values = [one.value for one in self.slots]
        return self.question.answer(values[0], values[min(1, len(values) - 1)], self.constant)


class InputPool:
    """The inputs of one part of all modalities, by digit."""

    def __init__(self, features: Mapping[str, Features]) -> None:
        self.features = features
        self.rows = {
            slot: [np.flatnonzero(one.digits.numpy() == digit) for digit in range(10)]
            for slot, one in features.items()
        }

    def slot_value(self, slot: str, value: int, noisy: bool, draw: np.random.Generator) -> SlotValue:
        """Return a slot with one of the inputs that show the value, or with its word."""
        if slot not in self.rows:
            return SlotValue(slot, value)
        rows = self.rows[slot][value]
        return SlotValue(slot, value, int(rows[draw.integers(len(rows))]), noisy)


def draw(
    pool: InputPool,
    names: Sequence[str],
    slots: Sequence[str],
    generator: np.random.Generator,
    noisy: bool = False,
) -> SlotQuestion:
    """Return a question of one of these names, about the first of these slots."""
    question = QUESTIONS[names[generator.integers(len(names))]]
    values = values_for(question, len(slots), generator)
    filled = tuple(pool.slot_value(*one, noisy, generator) for one in zip(slots, values, strict=True))
    return SlotQuestion(question, filled, constant_for(question, values[0], generator))


def _words(
    item: SlotQuestion, modalities: Sequence[str]
) -> tuple[list[str], list[int], dict[int, SlotValue]]:
    """Return words, streams, and place -> the value that stands there as soft tokens."""
    words, streams, soft = ["<s>"], [TEXT], {}
    for one in sorted(item.slots, key=lambda one: SLOTS.index(one.slot)):
        if one.row is not None and one.slot not in modalities:
            continue
        words.append(one.slot)
        streams.append(TEXT)
        if one.row is None:
            words.append(NUMBERS[one.value])
            streams.append(TEXT)
        else:
            soft[len(words)] = one
            words += [SOFT] * SOFT_TOKENS
            streams += [STREAMS[one.slot]] * SOFT_TOKENS
        words.append(".")
        streams.append(TEXT)
    asked = item.question.asked(*(one.slot for one in item.slots[:2]), constant=item.constant)
    return words + asked, streams + [TEXT] * len(asked), soft


def batch(
    items: Sequence[SlotQuestion],
    features: Mapping[str, Features],
    modalities: Sequence[str] = tuple(STREAMS),
) -> TokenBatch:
    """Return the batch of these questions; facts stand in the order of `SLOTS`.

    Inputs of other modalities than the model's are left out; what is asked stays the same.
    """
    texts = [_words(item, modalities) for item in items]
    shape = len(items), max(len(words) for words, _, _ in texts)
    tokens, streams = torch.zeros(shape, dtype=torch.long), torch.full(shape, TEXT)
    labels = torch.full(shape, -100)
    soft: dict[str, list[tuple[int, int, SlotValue]]] = {}
    for row, (item, (words, kinds, places)) in enumerate(zip(items, texts, strict=True)):
        tokens[row, : len(words)] = torch.tensor(ids(words))
        streams[row, : len(words)] = torch.tensor(kinds)
        labels[row, len(words) - 1] = ids([item.answer])[0]
        for place, one in places.items():
            soft.setdefault(one.slot, []).append((row, place, one))
    tokens_of = {slot: _soft(placed, features[slot]) for slot, placed in soft.items()}
    return TokenBatch(tokens, streams, labels, tokens_of)


def _soft(placed: Sequence[tuple[int, int, SlotValue]], features: Features) -> SoftTokens:
    rows, places = (torch.tensor([one[i] for one in placed]) for i in (0, 1))
    inputs = torch.tensor([one.row for _, _, one in placed])
    noisy = torch.tensor([one.noisy for _, _, one in placed])[:, None]
    return SoftTokens(rows, places, torch.where(noisy, features.noisy[inputs], features.clean[inputs]))
