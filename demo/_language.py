"""A small language: facts that give sources a number, and questions about them.

`image three . audio five . sum of image and audio ? eight </s>`. All of it is made by formula.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

__all__ = [
    "DIGITS",
    "ID",
    "NUMBERS",
    "ONE",
    "SOURCES",
    "TWO",
    "Question",
    "constant_for",
    "new_tokenizer",
    "numbers_for",
]

DIGITS = 10
"""Numbers that a source can have."""


def _listed(words: str) -> tuple[str, ...]:
    return tuple(words.split())


NUMBERS = _listed(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen"
)
SOURCES = ("image", "audio", "note")
"""What facts are about. Text may be about all; pictures and sounds come later, to two of them."""
_SYNTAX = _listed("is of and to number sum largest above equal even yes no")
_VOCABULARY = ("<pad>", "<s>", "</s>", ".", "?", *NUMBERS, *SOURCES, *_SYNTAX)
ID = {word: number for number, word in enumerate(_VOCABULARY)}
"""Word -> token id."""
_CHAT = (
    "<s> {% for message in messages %}{{ message['content'] }} "
    "{% if message['role'] == 'assistant' %}</s> {% endif %}{% endfor %}"
)


@dataclass(frozen=True)
class Question:
    """What is asked, with A and B for sources and C for a constant, and the answer for their numbers."""

    name: str
    words: str
    answer: Callable[[int, int, int], str]

    def asked(self, a: str, b: str = "", constant: int = 0) -> str:
        """Return its words about these sources."""
        filled = {"A": a, "B": b, "C": NUMBERS[constant]}
        return " ".join(filled.get(word, word) for word in self.words.split())


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"


ONE = (
    Question("number", "number of A ?", lambda a, b, c: NUMBERS[a]),
    Question("even", "is A even ?", lambda a, b, c: _yes(a % 2 == 0)),
    Question("above", "is A above C ?", lambda a, b, c: _yes(a > c)),
)
"""About one source."""
TWO = (
    Question("sum", "sum of A and B ?", lambda a, b, c: NUMBERS[a + b]),
    Question("same", "is A equal to B ?", lambda a, b, c: _yes(a == b)),
    Question("largest", "largest of A and B ?", lambda a, b, c: NUMBERS[max(a, b)]),
)
"""About two."""


def constant_for(draw: np.random.Generator) -> int:
    """Return a number that a question compares with."""
    return int(draw.integers(DIGITS))


def numbers_for(questions: Sequence[Question], count: int, draw: np.random.Generator) -> list[int]:
    """Return numbers of sources; where equality is asked, the first two are equal in half of the cases."""
    numbers = draw.integers(DIGITS, size=count).tolist()
    if any(question.name == "same" for question in questions) and draw.random() < 0.5:
        numbers[1] = numbers[0]
    return numbers


def new_tokenizer(added: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Return a tokenizer with an id for each word, and then for the special tokens that a specialist adds."""
    core = Tokenizer(models.WordLevel(ID, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", ID["<s>"])])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", padding_side="left"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(added)})
    tokenizer.chat_template = _CHAT
    return tokenizer
