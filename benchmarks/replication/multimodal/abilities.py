"""What the language model could do before: rank the answers of questions of school science (ARC, easy)."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

__all__ = ["ChoiceItem", "read", "scores"]

LONGEST = 25
"""Words of a question."""
AT_ONCE = 8
"""Questions of one pass, each with all its answers."""


@dataclass(frozen=True)
class ChoiceItem:
    """A question, its answers, and the number of the right one."""

    question: str
    choices: tuple[str, ...]
    right: int


def read(folder: Path, count: int) -> list[ChoiceItem]:
    """Return the first so many short questions of the test, from the folder of data."""
    with gzip.open(folder / "text" / "arc_easy" / "test.jsonl.gz", "rt", encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    short = [line for line in lines if len(line["p"].split()) <= LONGEST]
    return [ChoiceItem(line["p"], tuple(line["choices"]), line["key"]) for line in short[:count]]


@torch.inference_mode()
def scores(model: Any, tokenizer: Any, items: Sequence[ChoiceItem]) -> dict[str, float]:
    """Return the share of right answers that are the likeliest, and their mean log-likelihood."""
    right, total = 0, 0.0
    for at in range(0, len(items), AT_ONCE):
        part = items[at : at + AT_ONCE]
        pairs = [(item.question, choice) for item in part for choice in item.choices]
        likelihoods = _likelihoods(model, tokenizer, pairs)
        for item in part:
            mine, likelihoods = likelihoods[: len(item.choices)], likelihoods[len(item.choices) :]
            right += mine.index(max(mine)) == item.right
            total += mine[item.right]
    return {"accuracy": right / len(items), "likelihood": total / len(items)}


def _likelihoods(model: Any, tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> list[float]:
    """Return the log-likelihood of each answer after its question; of other places no logits are computed."""
    prompts = [tokenizer(f"Question: {question}\nAnswer:").input_ids for question, _ in pairs]
    answers = [tokenizer(f" {choice}").input_ids for _, choice in pairs]
    ids = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    longest, keep = max(map(len, ids)), max(map(len, answers)) + 1
    tokens = torch.tensor([[0] * (longest - len(one)) + one for one in ids])
    mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in ids])
    logits = model(input_ids=tokens, attention_mask=mask, logits_to_keep=keep, use_cache=False).logits
    spread = logits[:, :-1].float().log_softmax(-1)
    found = spread.gather(2, tokens[:, 1 - keep :, None])[..., 0]
    return [float(row[-len(answer) :].sum()) for row, answer in zip(found, answers, strict=True)]
