"""Trains each specialist by itself, on questions about its own modality alone."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM

from _examples import Examples
from _language import ONE, constant_for
from _specialists import Modality, Specialist, new_specialist, process

__all__ = ["train"]

STEPS, RATE, BATCH = 400, 2e-3, 48
ENCODER_ALONE = 0.4
"""Share of the steps in which encoder and projector learn, and the adapters are still zero."""


def train(modality: Modality, lm: LlamaForCausalLM, examples: Examples, steps: int = STEPS) -> Specialist:
    """Return a specialist: its encoder and projector are trained first, then the two adapters, too.

    The language model itself stays as it is.
    """
    specialist = new_specialist(modality, lm)
    model, batches = specialist.model.train(), _Batches(specialist, examples)
    named = list(model.named_parameters())
    modules = [p for name, p in named if "language_model" not in name and "lm_head" not in name]
    adapters = [p for name, p in named if "lora_" in name]
    model.requires_grad_(False)
    for parameter in modules:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW([*modules, *adapters], lr=RATE, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        if step == int(ENCODER_ALONE * steps):
            for parameter in adapters:
                parameter.requires_grad_(True)
        inputs, labels = batches.next()
        due = labels[:, 1:] >= 0
        loss = cross_entropy(model(**inputs).logits[:, :-1][due], labels[:, 1:][due])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*modules, *adapters], 1.0)
        optimizer.step()
        schedule.step()
    model.eval()
    return specialist


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
        question, constant = ONE[self.draw.integers(len(ONE))], constant_for(self.draw)
        answer = question.answer(self.numbers[i], 0, constant)
        asked = f"{question.asked(self.modality.name, constant=constant)} {answer} </s>"
        return self.facts[i] + self.tokenizer.encode(asked, add_special_tokens=False)
