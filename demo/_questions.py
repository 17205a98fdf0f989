"""Questions that models are judged on: about text, a picture, a sound, or a picture and a sound at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from _examples import Examples
from _language import NUMBERS, ONE, SOURCES, TWO, Question, constant_for, numbers_for
from _modalities import MODALITIES
from _specialists import process

__all__ = ["COLUMNS", "Prompt", "accuracy", "prompts", "read"]

COLUMNS: Mapping[str, tuple[Question, ...]] = {
    "text": (*ONE, *TWO),
    "image": ONE,
    "audio": ONE,
    **{question.name: (question,) for question in TWO},
}
"""What is asked under each heading of the table; the last ones are about a picture and a sound."""


@dataclass(frozen=True)
class Prompt:
    """Facts by source, a question about them with its answer, and pictures and sounds by source."""

    facts: Mapping[str, str]
    question: str
    answer: str
    inputs: Mapping[str, Any]

    @property
    def text(self) -> str:
        return " ".join([*self.facts.values(), self.question])

    def only(self, modality: str) -> Prompt:
        """Return what a model of one modality can be asked: inputs of others and their facts are left out."""
        lost = self.inputs.keys() - {modality}
        facts, inputs = (
            {source: value for source, value in values.items() if source not in lost}
            for values in (self.facts, self.inputs)
        )
        return replace(self, facts=facts, inputs=inputs)


def prompts(column: str, examples: Mapping[str, Examples], count: int) -> list[Prompt]:
    """Return questions of a column, always the same."""
    draw = np.random.default_rng(list(COLUMNS).index(column))
    return [_prompt(column, examples, draw) for _ in range(count)]


def _prompt(column: str, examples: Mapping[str, Examples], draw: np.random.Generator) -> Prompt:
    question = COLUMNS[column][draw.integers(len(COLUMNS[column]))]
    sources = SOURCES if column == "text" else [column] if column in examples else list(examples)
    sources = draw.permutation(sources)[:2].tolist()
    numbers = numbers_for([question], len(sources), draw)
    facts, inputs = {}, {}
    for source, number in zip(sources, numbers, strict=True):
        if column == "text":
            facts[source] = f"{source} {NUMBERS[number]} ."
        else:
            facts[source] = MODALITIES[source].fact
            inputs[source] = examples[source].one(number, draw)
    constant = constant_for(draw)
    (a, *_), (b, *_) = sources, reversed(sources)
    answer = question.answer(numbers[0], numbers[-1], constant)
    return Prompt(facts, question.asked(a, b, constant), answer, inputs)


def read(processor: Any, asked: Sequence[Prompt]) -> Any:
    """Return what a processor makes of prompts; the tokenizer of a language model is one for text alone."""
    inputs: dict[str, Any] = {}
    for name, modality in MODALITIES.items():
        if given := [prompt.inputs[name] for prompt in asked if name in prompt.inputs]:
            inputs[modality.argument] = given
    return process(processor, [prompt.text for prompt in asked], **inputs)


@torch.inference_mode()
def accuracy(model: Any, processor: Any, asked: Sequence[Prompt]) -> float:
    """Return the share of questions whose most likely next word is the answer, in percent."""
    said = model(**read(processor, asked)).logits[:, -1].argmax(-1)
    words = processor.batch_decode(said[:, None])
    return 100 * float(np.mean([word == prompt.answer for word, prompt in zip(words, asked, strict=True)]))
