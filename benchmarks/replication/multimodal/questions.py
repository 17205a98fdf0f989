"""Questions about digits and animals that are seen, heard or written, as chat prompts with short answers.

    A: <image>                         A: 3
    B: 5                               B: <|AUDIO|>
    Which is larger, A or B?           What is A plus B?

A specialist is trained on questions with inputs of its own modality and written words; joint questions, with
a picture and a sound, are asked of merged models alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.replication.multimodal.inputs import ANIMALS, DEGRADED, DIGITS, Sets, degraded
from benchmarks.replication.multimodal.reader import PromptRow
from benchmarks.replication.multimodal.unions import PLACEHOLDERS

__all__ = ["KINDS", "SKILLS", "TEXT", "QuestionKind", "draw_joint", "draw_rows", "draw_text"]

TEXT = "text"
NOISY_SHARE = 0.25
"""Of the inputs that a specialist is trained on; their noise has a strength of up to 1.5."""


@dataclass(frozen=True)
class QuestionKind:
    """A question about one word, or about two of which the first is A; `draw` gives words that it suits.

    `twice`: both are inputs of the same modality, with noise of strength 1, where a specialist is asked.
    """

    name: str
    about: str
    asks: str
    answer: Callable[[Sequence[str]], str]
    draw: Callable[[np.random.Generator], tuple[str, ...]]
    twice: bool = False


def _one(words: Sequence[str]) -> Callable[[np.random.Generator], tuple[str, ...]]:
    return lambda draw: (words[draw.integers(len(words))],)


def _two(words: Sequence[str]) -> Callable[[np.random.Generator], tuple[str, ...]]:
    """Return a draw of two words, half of the time of the same one twice."""

    def draw(draw: np.random.Generator) -> tuple[str, ...]:
        first, second = draw.choice(len(words), 2, replace=False)
        return words[first], words[first if draw.random() < 0.5 else second]

    return draw


def _different(draw: np.random.Generator) -> tuple[str, ...]:
    return tuple(DIGITS[i] for i in draw.choice(10, 2, replace=False))


def _addends(draw: np.random.Generator) -> tuple[str, ...]:
    """Return two digits whose sum is a digit, which is one token."""
    total = draw.integers(10)
    first = draw.integers(total + 1)
    return DIGITS[first], DIGITS[total - first]


def _bird_and_other(draw: np.random.Generator) -> tuple[str, ...]:
    pair = ["bird", ANIMALS[1 + draw.integers(len(ANIMALS) - 1)]]
    return tuple(pair if draw.random() < 0.5 else pair[::-1])


def _digit_twice(draw: np.random.Generator) -> tuple[str, ...]:
    return (DIGITS[draw.integers(10)],) * 2


def _yes(words: Sequence[str]) -> str:
    return "yes" if words[0] == words[1] else "no"


KINDS = {
    kind.name: kind
    for kind in (
        QuestionKind("name", "digit", "Which digit is A?", lambda w: w[0], _one(DIGITS)),
        QuestionKind("sum", "digit", "What is A plus B?", lambda w: str(int(w[0]) + int(w[1])), _addends),
        QuestionKind("same", "digit", "Are A and B the same digit?", _yes, _two(DIGITS)),
        QuestionKind("larger", "digit", "Which is larger, A or B?", max, _different),
        QuestionKind("both", "digit", "A and B are one digit. Which?", lambda w: w[0], _digit_twice, True),
        QuestionKind("animal", "animal", "Which animal is A?", lambda w: w[0], _one(ANIMALS)),
        QuestionKind("fit", "animal", "Are A and B the same animal?", _yes, _two(ANIMALS)),
        QuestionKind(
            "bird", "animal", "Which is a bird, A or B?", lambda w: "AB"[w[1] == "bird"], _bird_and_other
        ),
        QuestionKind(
            "next", "digit", "Which digit follows A?", lambda w: str(int(w[0]) + 1), _one(DIGITS[:-1])
        ),
        QuestionKind(
            "previous", "digit", "Which digit precedes A?", lambda w: str(int(w[0]) - 1), _one(DIGITS[1:])
        ),
    )
}
SKILLS = {"image": "next", "audio": "previous"}
"""Modality -> what only its specialist is taught."""
JOINT = ("image", "audio")
"""The modalities of joint questions."""
SHARED = tuple(name for name in KINDS if name not in SKILLS.values())


def prompt(kind: QuestionKind, shown: Sequence[str]) -> str:
    """Return the chat prompt of a question, A and B shown by these words or placeholders."""
    lines = [f"{letter}: {one}" for letter, one in zip("AB", shown, strict=False)]
    text = "\n".join([*lines, kind.asks])
    return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


class InputDraw:
    """Draws inputs of one part that show a word."""

    def __init__(self, sets: Mapping[str, Sets], part: str, draw: np.random.Generator) -> None:
        self.sets, self.part, self.draw = sets, part, draw

    def one(self, modality: str, about: str, word: str, strength: float = 0.0) -> np.ndarray:
        """Return an input with noise of this strength."""
        pool = self.sets[modality][about][self.part]
        places = pool.of(word)
        one = pool.inputs[places[self.draw.integers(len(places))]]
        return degraded(modality, one, strength, self.draw) if strength else one


def draw_rows(
    sets: Mapping[str, Sets],
    modality: str,
    part: str,
    names: Sequence[str],
    count: int,
    draw: np.random.Generator,
    strength: float | None = None,
) -> list[PromptRow]:
    """Return questions of these kinds in turn with inputs of one modality.

    `strength` of the noise is 0 if nothing else is said; in training rows a quarter of the inputs has some.
    """
    inputs = InputDraw(sets, part, draw)

    def noise() -> float:
        if strength is not None or part != "train":
            return strength or 0.0
        return 1.5 * draw.random() if draw.random() < NOISY_SHARE else 0.0

    rows = []
    for number in range(count):
        kind = KINDS[names[number % len(names)]]
        words = kind.draw(draw)
        places = range(len(words)) if kind.twice else [int(draw.integers(len(words)))]
        shown = [PLACEHOLDERS[modality] if i in places else word for i, word in enumerate(words)]
        given = [inputs.one(modality, kind.about, words[i], 1.0 if kind.twice else noise()) for i in places]
        rows.append(PromptRow(prompt(kind, shown), {modality: given}, kind.answer(words), words[places[0]]))
    return rows


def draw_joint(
    sets: Mapping[str, Sets], name: str, part: str, count: int, draw: np.random.Generator
) -> list[PromptRow]:
    """Return questions of a kind about a picture and a sound in either order; of `both` they are degraded."""
    inputs, kind, rows = InputDraw(sets, part, draw), KINDS[name], []
    for _ in range(count):
        words = kind.draw(draw)
        order = JOINT if draw.random() < 0.5 else JOINT[::-1]
        given = {
            modality: [inputs.one(modality, kind.about, word, kind.twice * DEGRADED)]
            for modality, word in zip(order, words, strict=True)
        }
        rows.append(PromptRow(prompt(kind, [PLACEHOLDERS[one] for one in order]), given, kind.answer(words)))
    return rows


def draw_text(name: str, count: int, draw: np.random.Generator) -> list[PromptRow]:
    """Return questions of a kind about written words alone."""
    kind = KINDS[name]
    drawn = [kind.draw(draw) for _ in range(count)]
    return [PromptRow(prompt(kind, words), {}, kind.answer(words)) for words in drawn]
