"""The LM as a classifier: its logits of a task's words after the prompt, and nothing else of the vocabulary.

    logits = W_words h    h: last hidden state after the prompt, W_words: the words' rows of the embedding

The embedding is tied and frozen, so that this is a frozen head of each task's own (the `score` of a
`LlamaForSequenceClassification`), and costs nothing beside the vocabulary's 49,152 rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from benchmarks.replication.encoder import Items, by_length
from benchmarks.replication.nli.tasks import words
from benchmarks.replication.rows import Rows

__all__ = ["Prompts", "accuracy", "load", "logits", "word_ids"]

BATCH_TOKENS = 1024
"""Of one batch without gradients, padding included."""


class Prompts(Items):
    """Prompts as token ids, padded on the right."""

    def __init__(self, rows: Rows, base: Path) -> None:
        self.texts = [str(row[0]) for row in rows]
        self.ids: list[list[int]] = _tokenizer(base)(self.texts)["input_ids"]
        self.labels = torch.tensor([row[2] for row in rows])

    def __len__(self) -> int:
        return len(self.ids)

    def batch(
        self, which: Sequence[int], device: torch.device | str = "cpu", draw: torch.Generator | None = None
    ) -> dict[str, torch.Tensor]:
        """Return the model's arguments for these rows, padded to the longest of them."""
        shape = len(which), max(len(self.ids[i]) for i in which)
        ids, mask = (torch.zeros(shape, dtype=torch.long) for _ in range(2))
        for row, i in enumerate(which):
            length = len(self.ids[i])
            ids[row, :length], mask[row, :length] = torch.tensor(self.ids[i]), 1
        return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}

    def batches(self) -> list[list[int]]:
        """Return the rows' numbers by length, in batches of about so many tokens."""
        return by_length([len(ids) for ids in self.ids], BATCH_TOKENS)


@lru_cache
def _tokenizer(base: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base)


def load(folder: Path, base: Path) -> Any:
    """Return the model of a folder, for use: a checkpoint, or a PEFT adapter on the base."""
    from transformers import AutoModelForCausalLM

    if not (folder / "adapter_config.json").exists():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    from peft import PeftModel

    return PeftModel.from_pretrained(load(base, base), folder).merge_and_unload().eval()


def word_ids(base: Path, task: str) -> list[int]:
    """Return the tokens of a task's words, of which each is one."""
    ids = _tokenizer(base)(list(words(task)), add_special_tokens=False)["input_ids"]
    if any(len(one) != 1 for one in ids):
        raise ValueError(f"{task}: of the words {words(task)} some are no single token")
    return [one[0] for one in ids]


def logits(model: Any, batch: dict[str, torch.Tensor], answers: Sequence[int]) -> torch.Tensor:
    """Return the logits of the tokens `answers` after each prompt, shape [n, C]."""
    hidden = model.model(**batch, use_cache=False).last_hidden_state
    last = batch["attention_mask"].sum(1) - 1
    rows = model.get_input_embeddings().weight[list(answers)]
    scores: torch.Tensor = hidden[torch.arange(len(last)), last] @ rows.T
    return scores


@torch.inference_mode()
def accuracy(model: Any, items: Prompts, answers: Sequence[int]) -> float:
    """Return the share of prompts whose most likely answer is the right one."""
    predicted = items.in_batches(lambda which: logits(model, items.batch(which), answers).argmax(1))
    return (predicted == items.labels).double().mean().item()
