"""The text that the decoder LM is pretrained on, made by formulas.

A passage has several places whose word is asked for; nothing else is learnt.
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

__all__ = ["SKILLS", "Passage", "batch", "described", "numbers", "restated", "skill_passages", "uncertain"]


@dataclass(frozen=True)
class Passage:
    """Words, the places of the answers among them, and evidence: place -> weights over ten digit words."""

    words: list[str]
    answers: list[int]
    evidence: dict[int, np.ndarray]


Maker = Callable[[np.random.Generator], Passage]


def _facts(names: Sequence[str], values: Sequence[int]) -> list[str]:
    words = ["<s>"]
    for name, value in zip(names, values, strict=True):
        words += [name, NUMBERS[value], "."]
    return words


def _names(draw: np.random.Generator, count: int) -> list[str]:
    return [SLOTS[i] for i in draw.permutation(len(SLOTS))[:count]]


def numbers(draw: np.random.Generator, questions: int = 3, only: str | None = None) -> Passage:
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
    return Passage(words, answers, {})


def restated(draw: np.random.Generator) -> Passage:
    """Return four facts that stand three times. From it the LM learns to find the value of a slot."""
    values = draw.integers(DIGITS, size=len(SLOTS)).tolist()
    words, answers = ["<s>"], []
    for time in range(3):
        for i in draw.permutation(len(SLOTS)):
            if time:
                answers.append(len(words) + 1)
            words += [SLOTS[i], NUMBERS[values[i]], "."]
    return Passage(words, answers, {})


def described(draw: np.random.Generator, questions: int = 3) -> Passage:
    """Return slots with coloured shapes or things, and questions about them."""
    names = _names(draw, int(draw.integers(1, 4)))
    words, answers = ["<s>"], []
    values: list[tuple[str, ...]] = []
    for name in names:
        coloured = draw.random() < 0.5
        groups = (COLOURS, SHAPES) if coloured else (THINGS,)
        values.append(tuple(group[draw.integers(len(group))] for group in groups))
        words += [name, *values[-1], "."]
    for _ in range(questions):
        which = int(draw.integers(len(names)))
        kinds = ("color", "shape") if len(values[which]) == 2 else ("thing",)
        right = dict(zip(kinds, values[which], strict=True))
        asked = list(right)[draw.integers(len(right))]
        if draw.random() < 0.4:
            group = {"color": COLOURS, "shape": SHAPES, "thing": THINGS}[asked]
            guess = right[asked] if draw.random() < 0.5 else group[draw.integers(len(group))]
            words += ["is", names[which], guess, "?"]
            answer = "yes" if guess == right[asked] else "no"
        else:
            words += [asked, "of", names[which], "?"]
            answer = right[asked]
        answers.append(len(words))
        words.append(answer)
    return Passage(words, answers, {})


def uncertain(draw: np.random.Generator) -> Passage:
    """Return one or two slots whose number is only likely, and the question for it.

    The value of a slot is a mixture of digit words, weighted by the posterior of a noisy observation. From it
    the LM learns to combine evidence, in text alone.
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
    return Passage([*words, NUMBERS[value]], [len(words)], evidence)


def batch(passages: Sequence[Passage]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ids and labels, shape [n, longest], and evidence as rows (sequence, place, ten weights).

    A label stands where the word before the answer stands; elsewhere it is −100.
    """
    shape = len(passages), max(len(one.words) for one in passages)
    tokens, labels = torch.zeros(shape, dtype=torch.long), torch.full(shape, -100)
    evidence = []
    for row, one in enumerate(passages):
        tokens[row, : len(one.words)] = torch.tensor(ids(one.words))
        for place in one.answers:
            labels[row, place - 1] = tokens[row, place]
        evidence += [[row, place, *weights] for place, weights in one.evidence.items()]
    return tokens, labels, torch.tensor(evidence, dtype=torch.float32).reshape(-1, 2 + DIGITS)


SKILLS: dict[str, Maker] = {
    **{one.name: lambda draw, name=one.name: numbers(draw, 1, name) for one in (*ONE, *TWO, BOTH)},
    "described": lambda draw: described(draw, 1),
}
"""What the LM must know before it is used: one question each."""


def skill_passages(skill: str, count: int, seed: int = 0) -> list[Passage]:
    """Return passages that ask for one skill, always the same."""
    draw = np.random.default_rng([seed, list(SKILLS).index(skill)])
    return [SKILLS[skill](draw) for _ in range(count)]
