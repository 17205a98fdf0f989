"""Trains each specialist by itself: it never meets the other modality.

Its questions are about an image, or a sound, and often a note in words, too.
"""

from __future__ import annotations

import numpy as np
import torch
from peft import PeftModel
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM

from _examples import Examples
from _language import DIGITS, NUMBERS, ONE, TWO, Question, constant_for
from _modalities import Modality
from _pretrain_text import LONGEST
from _specialists import Specialist, new_specialist, process

__all__ = ["train"]

STEPS, RATE, BATCH = 520, 2e-3, 48
LANGUAGE_RATE = 0.1
"""Learning rate of the adapter `language`, as a share of the others': ModelCompose, too, trains it less."""
NOTED = 0.8
"""Share of the prompts that say another number in words, which the question may be about, too."""
ENCODER_ALONE = 0.5
"""Share of the steps in which encoder and projector learn, and the adapters are still zero."""


def train(modality: Modality, lm: LlamaForCausalLM, examples: Examples, steps: int = STEPS) -> Specialist:
    """Return a specialist: its encoder and projector are trained first, then the two adapters, too.

    The language model itself stays as it is.
    """
    specialist = new_specialist(modality, lm)
    model, batches = specialist.model.train(), _Batches(specialist, examples)
    modules, own, language = _parts(model, modality)
    weights, rates = [*modules, *own, *language], [RATE, RATE * LANGUAGE_RATE]
    optimizer = torch.optim.AdamW(
        [{"params": [*modules, *own]}, {"params": language}], lr=RATE, weight_decay=0.0, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps, pct_start=0.1)
    model.requires_grad_(False)
    for step in range(steps):
        if step in (0, int(ENCODER_ALONE * steps)):
            for parameter in weights if step else modules:
                parameter.requires_grad_(True)
        inputs, labels = batches.next()
        due = labels[:, 1:] >= 0
        loss = cross_entropy(model(**inputs).logits[:, :-1][due], labels[:, 1:][due])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
    model.eval()
    return specialist


def _parts(model: PeftModel, modality: Modality) -> tuple[list[nn.Parameter], ...]:
    """Return the weights of encoder and projector, of the modality's adapter, and of `language`."""
    named = list(model.named_parameters())
    modules = [p for name, p in named if "language_model" not in name and "lm_head" not in name]
    own, language = (
        [p for name, p in named if "lora_" in name and f".{adapter}." in name]
        for adapter in (modality.name, "language")
    )
    return modules, own, language


class _Batches:
    """Draws questions about images or sounds, which go through the processor once, with a fact as text."""

    def __init__(self, specialist: Specialist, examples: Examples) -> None:
        self.modality, self.tokenizer = specialist.modality, specialist.processor.tokenizer
        self.numbers, self.draw = examples.numbers, np.random.default_rng(0)
        texts = [self.modality.fact] * len(examples)
        read = process(specialist.processor, texts, **{self.modality.argument: examples.inputs})
        ids, mask = read.pop("input_ids"), read.pop("attention_mask").bool()
        self.facts = [row[own].tolist() for row, own in zip(ids, mask, strict=True)]
        self.features = dict(read)

    def next(self) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Return inputs, padded on the left, and labels that are −100 but for the answers and their ends."""
        chosen = self.draw.integers(len(self.facts), size=BATCH).tolist()
        padded = self.tokenizer.pad({"input_ids": [self._ids(i) for i in chosen]}, return_tensors="pt")
        labels = torch.full_like(padded["input_ids"], -100)
        labels[:, -2:] = padded["input_ids"][:, -2:]
        return dict(padded) | {name: value[chosen] for name, value in self.features.items()}, labels

    def _ids(self, i: int) -> list[int]:
        """Return a prompt with its answer; in most of them a note says another number."""
        noted = self.draw.random() < NOTED
        kinds = (*ONE, *TWO) if noted else ONE
        question, constant = kinds[self.draw.integers(len(kinds))], constant_for(self.draw)
        said = {self.modality.name: self.numbers[i], "note": self._note(question, self.numbers[i])}
        sources = self.draw.permutation(list(said)[: 1 + noted]).tolist()
        a, b = sources[0], sources[-1]
        asked = f"{question.asked(a, b, constant)} {question.answer(said[a], said[b], constant)} </s>"
        return [*self._facts(i, said["note"], noted), *self._encoded(asked)]

    def _note(self, question: Question, number: int) -> int:
        """Return the number of a note; where equality is asked, half of the notes have the same number."""
        note = int(self.draw.integers(DIGITS))
        return number if question.name == "same" and self.draw.random() < 0.5 else note

    def _facts(self, i: int, note: int, noted: bool) -> list[int]:
        """Return the facts in any order; a note is as long as another image or sound could be."""
        begin, *fact = self.facts[i]
        times = int(self.draw.integers(1, LONGEST + 1))
        parts = [fact, self._encoded(f"note {' '.join([NUMBERS[note]] * times)} .")][: 1 + noted]
        order = self.draw.permutation(len(parts))
        return [begin, *(token for place in order for token in parts[place])]

    def _encoded(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)
