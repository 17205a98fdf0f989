"""The language of the decoder LM: words, facts, questions, and how they become token ids.

`image three . audio five . sum of image and audio ? eight`: facts give slots a number, or say what is in
them, and questions ask about slots. A question's answer is one word.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = [
    "BOTH",
    "COLOURS",
    "DIGITS",
    "NEW",
    "NUMBERS",
    "ONE",
    "QUESTIONS",
    "SHAPES",
    "SLOTS",
    "SOFT",
    "THINGS",
    "TWO",
    "VOCABULARY",
    "Question",
    "constant_for",
    "ids",
    "values_for",
]

SLOTS = ("image", "audio", "points", "note")


def _listed(words: str) -> tuple[str, ...]:
    return tuple(words.split())


NUMBERS = _listed(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen"
)
DIGITS = 10
"""Numbers that a slot can have as its value."""
COLOURS = _listed("red green blue black gray teal brown yellow")
SHAPES = _listed("circle rectangle triangle")
THINGS = _listed(
    "tshirt trouser pullover dress coat sandal shirt sneaker bag boot "
    "airplane automobile bird cat deer dog frog horse ship truck a b c d e f g h i j "
    "limit ban priority danger order end"
)
SOFT = "<soft>"
"""Where an encoder's tokens go."""
_SYNTAX = _listed(
    "is of and to number even odd above below equal sum largest smallest both yes no color shape thing "
    "successor predecessor mirror"
)
VOCABULARY = ("<pad>", "<s>", SOFT, ".", "?", *NUMBERS, *SLOTS, *COLOURS, *SHAPES, *THINGS, *_SYNTAX)
_ID = {word: number for number, word in enumerate(VOCABULARY)}


@dataclass(frozen=True)
class Question:
    """What is asked, as words with A and B for slots and C for a constant, and the answer as a function.

    One that asks about "both" names no slot; its two slots have the same number.
    """

    name: str
    words: str
    answer: Callable[[int, int, int], str]

    @property
    def slots(self) -> int:
        """Return how many slots it is about."""
        return 2 if {"B", "both"} & set(self.words.split()) else 1

    def asked(self, a: str, b: str = "", constant: int = 0) -> list[str]:
        """Return its words about these slots."""
        filled = {"A": a, "B": b, "C": NUMBERS[constant]}
        return [filled.get(word, word) for word in self.words.split()]


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"


ONE = (
    Question("number", "number of A ?", lambda a, b, c: NUMBERS[a]),
    Question("even", "is A even ?", lambda a, b, c: _yes(a % 2 == 0)),
    Question("odd", "is A odd ?", lambda a, b, c: _yes(a % 2 == 1)),
    Question("above_c", "is A above C ?", lambda a, b, c: _yes(a > c)),
    Question("below_c", "is A below C ?", lambda a, b, c: _yes(a < c)),
    Question("equal_c", "is A equal to C ?", lambda a, b, c: _yes(a == c)),
)
TWO = (
    Question("sum", "sum of A and B ?", lambda a, b, c: NUMBERS[a + b]),
    Question("same", "is A equal to B ?", lambda a, b, c: _yes(a == b)),
    Question("above", "is A above B ?", lambda a, b, c: _yes(a > b)),
    Question("largest", "largest of A and B ?", lambda a, b, c: NUMBERS[max(a, b)]),
    Question("smallest", "smallest of A and B ?", lambda a, b, c: NUMBERS[min(a, b)]),
)
BOTH = Question("both", "number of both ?", lambda a, b, c: NUMBERS[a])
NEW = (
    Question("successor", "successor of A ?", lambda a, b, c: NUMBERS[(a + 1) % DIGITS]),
    Question("predecessor", "predecessor of A ?", lambda a, b, c: NUMBERS[(a - 1) % DIGITS]),
    Question("mirror", "mirror of A ?", lambda a, b, c: NUMBERS[DIGITS - 1 - a]),
)
"""Skills that the LM is not pretrained on."""
QUESTIONS: Mapping[str, Question] = {one.name: one for one in (*ONE, *TWO, BOTH, *NEW)}


def ids(words: Sequence[str]) -> list[int]:
    """Return the ids of words."""
    return [_ID[word] for word in words]


def constant_for(question: Question, value: int, draw: np.random.Generator) -> int:
    """Return a constant to compare with: the value itself in half of the cases where equality is asked."""
    if question.name == "equal_c" and draw.random() < 0.5:
        return value
    return int(draw.integers(DIGITS))


def values_for(question: Question, count: int, draw: np.random.Generator) -> list[int]:
    """Return the numbers of slots: the first two equal for "both", and in half of the cases for "same"."""
    values: list[int] = draw.integers(DIGITS, size=count).tolist()
    if question.name == "both" or (question.name == "same" and draw.random() < 0.5):
        values[1] = values[0]
    return values
