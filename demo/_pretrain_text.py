"""Pretrains a small language model on facts and questions in text alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from _language import DIGITS, ID, NUMBERS, ONE, SOURCES, TWO, constant_for, numbers_for

__all__ = ["LONGEST", "pretrain"]

STEPS, RATE, BATCH = 750, 4e-3, 48
FIRST = 0.35
"""Share of the steps that have mostly facts said again."""
LONGEST = 5
"""A fact may say its number several times, as an encoder makes several tokens of a picture or a sound."""

Passage = tuple[list[str], list[int]]
"""Words, and the places of those that are to be predicted."""


def pretrain(steps: int = STEPS) -> LlamaForCausalLM:
    """Return a language model that answers questions about facts in text.

    It begins with facts that are said again; where all is mixed from the start, it is a matter of luck
    whether the number of a source is ever found.
    """
    model, draw = _new_model().train(), np.random.default_rng(0)
    weights = list(model.parameters())
    optimizer = torch.optim.AdamW(weights, lr=RATE, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.08)
    for step in range(steps):
        again = 0.8 if step < FIRST * steps else 0.2
        ids, labels = _batch(
            [_said_again(draw) if draw.random() < again else _asked(draw) for _ in range(BATCH)]
        )
        due = labels[:, 1:] >= 0
        hidden = model.model(input_ids=ids[:, :-1]).last_hidden_state[due]
        loss = cross_entropy(model.lm_head(hidden), labels[:, 1:][due])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


def _new_model() -> LlamaForCausalLM:
    """Return an untrained model: 3 layers of width 64, 0.13 M parameters.

    The weights start larger than transformers' 0.02: with that, attention has hardly a slope at this width,
    and the number of a source is not found in thousands of steps.
    """
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(ID),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=128,
            rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
            initializer_range=0.11,
            pad_token_id=ID["<pad>"],
            bos_token_id=ID["<s>"],
            eos_token_id=ID["</s>"],
        )
    )


def _said_again(draw: np.random.Generator) -> Passage:
    """Return facts that are said three times; all but the first time, the number is to be predicted."""
    numbers = draw.integers(DIGITS, size=len(SOURCES)).tolist()
    words, due = ["<s>"], []
    for time in range(3):
        for i in draw.permutation(len(SOURCES)):
            if time:
                due.append(len(words) + 1)
            words += [SOURCES[i], NUMBERS[numbers[i]], "."]
    return words, due


def _asked(draw: np.random.Generator) -> Passage:
    """Return facts and three questions about them; the answers and their ends are to be predicted."""
    count = int(draw.integers(1, len(SOURCES) + 1))
    kinds = (*ONE, *TWO) if count > 1 else ONE
    questions = [kinds[draw.integers(len(kinds))] for _ in range(3)]
    sources = [SOURCES[i] for i in draw.permutation(len(SOURCES))[:count]]
    numbers = numbers_for(questions, count, draw)
    words, due = ["<s>"], []
    for source, number, times in zip(
        sources, numbers, draw.integers(1, LONGEST + 1, size=count), strict=True
    ):
        words += [source, *[NUMBERS[number]] * times, "."]
    for question in questions:
        a, b = draw.permutation(count)[:2].tolist() if count > 1 else (0, 0)
        constant = constant_for(draw)
        words += question.asked(sources[a], sources[b], constant).split()
        due += [len(words), len(words) + 1]
        words += [question.answer(numbers[a], numbers[b], constant), "</s>"]
    return words, due


def _batch(passages: Sequence[Passage]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and labels, shape [n, longest]; labels are −100 but for what is to be predicted."""
    shape = len(passages), max(len(words) for words, _ in passages)
    ids, labels = torch.zeros(shape, dtype=torch.long), torch.full(shape, -100)
    for row, (words, due) in enumerate(passages):
        ids[row, : len(words)] = torch.tensor([ID[word] for word in words])
        labels[row, due] = ids[row, due]
    return ids, labels
