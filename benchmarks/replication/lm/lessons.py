"""The text that the decoder LM is taught with, made by formulas.

A sequence has several places whose word is asked for; nothing else is learnt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.replication.lm.words import (
    BOTH,
    COLOURS,
    DIGITS,
    NUMBERS,
    ONE,
    QUESTIONS,
    SHAPES,
    SLOTS,
    THINGS,
    TWO,
    constant_for,
    ids,
    values_for,
)

__all__ = ["SKILLS", "Lesson", "batch", "described", "exam", "numbers", "restated", "soft"]


@dataclass(frozen=True)
class Lesson:
    """Words, the places of the answers among them, and evidence: place -> weights over ten digit words."""

    words: list[str]
    answers: list[int]
    evidence: dict[int, np.ndarray]


Maker = Callable[[np.random.Generator], Lesson]


def _facts(names: Sequence[str], values: Sequence[int]) -> list[str]:
    words = ["<s>"]
    for name, value in zip(names, values, strict=True):
        words += [name, NUMBERS[value], "."]
    return words


def _names(draw: np.random.Generator, count: int) -> list[str]:
    return [SLOTS[i] for i in draw.permutation(len(SLOTS))[:count]]


def numbers(draw: np.random.Generator, questions: int = 3, only: str | None = None) -> Lesson:
    """Return one to four slots with numbers, and questions about them, of all kinds or of one."""
    least = QUESTIONS[only].slots if only else 1
    count = 2 if only == "both" else int(draw.integers(least, len(SLOTS) + 1))
    kinds = [*ONE, *TWO] if count > 1 else [*ONE]
    first = QUESTIONS[only] if only else kinds[draw.integers(len(kinds))]
    names, values = _names(draw, count), values_for(first, count, draw)
    words, answers = _facts(names, values), []
    for number in range(questions):
        question = first if number == 0 or only else kinds[draw.integers(len(kinds))]
        a, b = (
            draw.permutation(2 if number == 0 and count > 1 else count)[:2].tolist() if count > 1 else (0, 0)
        )
        constant = constant_for(question, values[a], draw)
        words += question.asked(names[a], names[b], constant)
        answers.append(len(words))
        words.append(question.answer(values[a], values[b], constant))
    return Lesson(words, answers, {})


def restated(draw: np.random.Generator) -> Lesson:
    """Return four facts that are told three times. It teaches to find what a slot holds."""
    values = draw.integers(DIGITS, size=len(SLOTS)).tolist()
    words, answers = ["<s>"], []
    for time in range(3):
        for i in draw.permutation(len(SLOTS)):
            if time:
                answers.append(len(words) + 1)
            words += [SLOTS[i], NUMBERS[values[i]], "."]
    return Lesson(words, answers, {})


def described(draw: np.random.Generator, questions: int = 3) -> Lesson:
    """Return slots with coloured shapes or things, and questions about them."""
    names = _names(draw, int(draw.integers(1, 4)))
    words, answers = ["<s>"], []
    held: list[tuple[str, ...]] = []
    for name in names:
        coloured = draw.random() < 0.5
        groups = (COLOURS, SHAPES) if coloured else (THINGS,)
        held.append(tuple(group[draw.integers(len(group))] for group in groups))
        words += [name, *held[-1], "."]
    for _ in range(questions):
        which = int(draw.integers(len(names)))
        found = dict(
            zip(("color", "shape") if len(held[which]) == 2 else ("thing",), held[which], strict=True)
        )
        asked = list(found)[draw.integers(len(found))]
        if draw.random() < 0.4:
            group = {"color": COLOURS, "shape": SHAPES, "thing": THINGS}[asked]
            guess = found[asked] if draw.random() < 0.5 else group[draw.integers(len(group))]
            words += ["is", names[which], guess, "?"]
            answer = "yes" if guess == found[asked] else "no"
        else:
            words += [asked, "of", names[which], "?"]
            answer = found[asked]
        answers.append(len(words))
        words.append(answer)
    return Lesson(words, answers, {})


def soft(draw: np.random.Generator) -> Lesson:
    """Return one or two slots whose number is only likely, and the question for it.

    A slot holds a mixture of digit words, weighted by the posterior of a noisy observation. It teaches to
    put evidence together, in text alone.
    """
    both = draw.random() < 0.7
    value = int(draw.integers(DIGITS))
    names = _names(draw, 2 if both else 1)
    words, evidence = ["<s>"], {}
    for name in names:
        spread = draw.choice((0.3, 0.6, 0.9, 1.2, 1.6))
        logits = -(((value + spread * draw.standard_normal() - np.arange(DIGITS)) / spread) ** 2) / 2
        weights = np.exp(logits - logits.max())
        evidence[len(words) + 1] = weights / weights.sum()
        words += [name, NUMBERS[value], "."]
    words += (BOTH if both else QUESTIONS["number"]).asked(names[0])
    return Lesson([*words, NUMBERS[value]], [len(words)], evidence)


def batch(some: Sequence[Lesson]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ids and labels, shape [n, longest], and evidence as rows (sequence, place, ten weights).

    A label stands where the word before the answer stands; elsewhere it is −100.
    """
    shape = len(some), max(len(one.words) for one in some)
    found, labels = torch.zeros(shape, dtype=torch.long), torch.full(shape, -100)
    evidence = []
    for row, one in enumerate(some):
        found[row, : len(one.words)] = torch.tensor(ids(one.words))
        for place in one.answers:
            labels[row, place - 1] = found[row, place]
        evidence += [[row, place, *weights] for place, weights in one.evidence.items()]
    return found, labels, torch.tensor(evidence, dtype=torch.float32).reshape(-1, 2 + DIGITS)


SKILLS: dict[str, Maker] = {
    **{one.name: lambda draw, name=one.name: numbers(draw, 1, name) for one in (*ONE, *TWO, BOTH)},
    "described": lambda draw: described(draw, 1),
}
"""What the LM must know before it is used: one question each."""


def exam(skill: str, count: int, seed: int = 0) -> list[Lesson]:
    """Return sequences that ask for one skill."""
    draw = np.random.default_rng([seed, list(SKILLS).index(skill)])
    return [SKILLS[skill](draw) for _ in range(count)]
