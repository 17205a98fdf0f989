"""Questions about digits that are seen, heard, felt or told, and how they become batches for the LM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.replication.audiovisual.encoders import Features
from benchmarks.replication.audiovisual.senses import SENSES
from benchmarks.replication.lm.streams import TEXT, Batch, Soft
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

__all__ = ["SOFT_TOKENS", "STREAMS", "Held", "Item", "Pool", "batch", "draw"]

SOFT_TOKENS = 2
"""Of every input."""
STREAMS = {sense.slot: number for number, sense in enumerate(SENSES, TEXT + 1)}
"""Slot -> stream of its soft tokens."""


@dataclass(frozen=True)
class Held:
    """What a slot holds: a number, told in words, or the row of an input that shows it."""

    slot: str
    value: int
    row: int | None = None
    noisy: bool = False


@dataclass(frozen=True)
class Item:
    """A question about the first slots of those held, and a constant."""

    question: Question
    held: tuple[Held, ...]
    constant: int = 0

    @property
    def answer(self) -> str:
        """Return the right word."""
        values = [held.value for held in self.held]
        return self.question.answer(values[0], values[min(1, len(values) - 1)], self.constant)


class Pool:
    """The inputs of one part of all senses, by digit."""

    def __init__(self, features: Mapping[str, Features]) -> None:
        self.features = features
        self.rows = {
            slot: [np.flatnonzero(one.digits.numpy() == digit) for digit in range(10)]
            for slot, one in features.items()
        }

    def held(self, slot: str, value: int, noisy: bool, draw: np.random.Generator) -> Held:
        """Return a slot with one of the inputs that show the value, or with its word."""
        if slot not in self.rows:
            return Held(slot, value)
        rows = self.rows[slot][value]
        return Held(slot, value, int(rows[draw.integers(len(rows))]), noisy)


def draw(
    pool: Pool,
    names: Sequence[str],
    slots: Sequence[str],
    generator: np.random.Generator,
    noisy: bool = False,
) -> Item:
    """Return a question of one of these names, about the first of these slots."""
    question = QUESTIONS[names[generator.integers(len(names))]]
    values = values_for(question, len(slots), generator)
    held = tuple(pool.held(*one, noisy, generator) for one in zip(slots, values, strict=True))
    return Item(question, held, constant_for(question, values[0], generator))


def _words(item: Item, sees: Sequence[str]) -> tuple[list[str], list[int], dict[int, Held]]:
    """Return words, streams, and place -> what is held there as soft tokens."""
    words, streams, soft = ["<s>"], [TEXT], {}
    for held in sorted(item.held, key=lambda held: SLOTS.index(held.slot)):
        if held.row is not None and held.slot not in sees:
            continue
        words.append(held.slot)
        streams.append(TEXT)
        if held.row is None:
            words.append(NUMBERS[held.value])
            streams.append(TEXT)
        else:
            soft[len(words)] = held
            words += [SOFT] * SOFT_TOKENS
            streams += [STREAMS[held.slot]] * SOFT_TOKENS
        words.append(".")
        streams.append(TEXT)
    asked = item.question.asked(*(held.slot for held in item.held[:2]), constant=item.constant)
    return words + asked, streams + [TEXT] * len(asked), soft


def batch(
    items: Sequence[Item], features: Mapping[str, Features], sees: Sequence[str] = tuple(STREAMS)
) -> Batch:
    """Return the batch of these items; facts are told in the order of `SLOTS`.

    Inputs of a modality that the model does not see are left out; what is asked stays the same.
    """
    found = [_words(item, sees) for item in items]
    shape = len(items), max(len(words) for words, _, _ in found)
    tokens, streams = torch.zeros(shape, dtype=torch.long), torch.full(shape, TEXT)
    labels = torch.full(shape, -100)
    soft: dict[str, list[tuple[int, int, Held]]] = {}
    for row, (item, (words, kinds, places)) in enumerate(zip(items, found, strict=True)):
        tokens[row, : len(words)] = torch.tensor(ids(words))
        streams[row, : len(words)] = torch.tensor(kinds)
        labels[row, len(words) - 1] = ids([item.answer])[0]
        for place, held in places.items():
            soft.setdefault(held.slot, []).append((row, place, held))
    return Batch(tokens, streams, labels, {slot: _soft(some, features[slot]) for slot, some in soft.items()})


def _soft(some: Sequence[tuple[int, int, Held]], features: Features) -> Soft:
    rows, places = (torch.tensor([one[i] for one in some]) for i in (0, 1))
    inputs = torch.tensor([held.row for _, _, held in some])
    noisy = torch.tensor([held.noisy for _, _, held in some])[:, None]
    return Soft(rows, places, torch.where(noisy, features.noisy[inputs], features.clean[inputs]))
