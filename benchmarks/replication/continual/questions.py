"""Questions about images as a model of transformers is given them, and the share that it answers rightly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.replication.multimodal.reader import PromptRow

__all__ = ["IGNORED", "ReadQuestion", "accuracy", "model_inputs", "read_questions", "training_inputs"]

AT_ONCE = 50
"""Questions of one pass."""
IGNORED = -100
"""Label of a place where no token is due."""


@dataclass(frozen=True)
class ReadQuestion:
    """The ids of a prompt, with a placeholder for each of the image's tokens, and of its answer; pixels."""

    ids: list[int]
    answer: list[int]
    pixels: torch.Tensor


def read_questions(processor: Any, rows: Sequence[PromptRow]) -> list[ReadQuestion]:
    """Return the rows as the model's processor reads them."""
    if not rows:
        return []
    read = processor(text=[row.prompt for row in rows], images=[list(row.inputs["image"]) for row in rows])
    answers = processor.tokenizer([row.answer for row in rows], add_special_tokens=False).input_ids
    pixels = torch.from_numpy(np.stack(read["pixel_values"]))
    return [ReadQuestion(*one) for one in zip(read["input_ids"], answers, pixels, strict=True)]


def model_inputs(questions: Sequence[ReadQuestion], more: Sequence[list[int]] = ()) -> dict[str, Any]:
    """Return the batch of these questions, padded on the left; `more` are ids that follow each prompt."""
    ids = [one.ids for one in questions]
    if more:
        ids = [a + b for a, b in zip(ids, more, strict=True)]
    longest = max(map(len, ids))
    return {
        "input_ids": torch.tensor([[0] * (longest - len(one)) + one for one in ids]),
        "attention_mask": torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in ids]),
        "pixel_values": torch.stack([one.pixels for one in questions]),
    }


def training_inputs(questions: Sequence[ReadQuestion], end: int) -> tuple[dict[str, Any], torch.Tensor]:
    """Return the batch with answers, and the token that is due after each of its last places, [B, k]."""
    due = [[*one.answer, end] for one in questions]
    most = max(map(len, due))
    labels = torch.tensor([[IGNORED] * (most - len(one)) + one for one in due])
    inputs = model_inputs(questions, [one.answer for one in questions])
    return {**inputs, "logits_to_keep": most}, labels


@torch.inference_mode()
def accuracy(model: Any, questions: Sequence[ReadQuestion], **more: Any) -> float:
    """Return for how many questions the likeliest next token, of all, is the first of the answer.

    What else is given goes to the model. The answers of a task begin with different tokens.
    """
    in_order, right = sorted(questions, key=lambda one: len(one.ids)), 0
    for at in range(0, len(in_order), AT_ONCE):
        part = in_order[at : at + AT_ONCE]
        logits = model(**model_inputs(part), logits_to_keep=1, use_cache=False, **more).logits[:, -1]
        right += sum(
            token == one.answer[0] for token, one in zip(logits.argmax(-1).tolist(), part, strict=True)
        )
    return right / len(in_order)
