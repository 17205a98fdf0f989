"""Sentences and pairs of sentences as a domain: token ids, batches of like lengths, features of BERT."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import normalize

from benchmarks.replication.encoder import Domain, Items, by_length
from benchmarks.replication.rows import CLASSES, Rows

__all__ = ["Sentences"]

BATCH_TOKENS = 4096
"""Of one batch without gradients, padding included."""


class _Sentences(Items):
    """Rows as token ids, sorted by length so that little is padded."""

    def __init__(self, rows: Rows, tokenizer: Any, most: int, kind: str) -> None:
        first, second = [row[0] for row in rows], [row[1] for row in rows]
        pairs = second if any(text is not None for text in second) else None
        tokens = tokenizer(first, pairs, truncation=True, max_length=most, return_token_type_ids=True)
        self.ids, self.types = tokens["input_ids"], tokens["token_type_ids"]
        self.labels, self.kind = torch.tensor([row[2] for row in rows]), kind

    def __len__(self) -> int:
        return len(self.ids)

    def batch(
        self, which: Sequence[int], device: torch.device | str = "cpu", draw: torch.Generator | None = None
    ) -> dict[str, torch.Tensor]:
        """Return the model's arguments for these rows, padded to the longest of them."""
        longest = max(len(self.ids[i]) for i in which)
        shape = (len(which), longest)
        ids, types, mask = (torch.zeros(shape, dtype=torch.long) for _ in range(3))
        for row, i in enumerate(which):
            length = len(self.ids[i])
            ids[row, :length] = torch.tensor(self.ids[i])
            types[row, :length] = torch.tensor(self.types[i])
            mask[row, :length] = 1
        arguments = {"input_ids": ids, "token_type_ids": types, "attention_mask": mask}
        return {name: value.to(device) for name, value in arguments.items()}

    def batches(self) -> list[list[int]]:
        """Return the rows' numbers by length, in batches of about so many tokens."""
        return by_length([len(ids) for ids in self.ids], BATCH_TOKENS)


@dataclass(frozen=True)
class Sentences(Domain):
    """A BERT-like encoder; its feature is the mean over a row's tokens. The embeddings stay as they are."""

    max_tokens: int = 48
    targets = r"encoder\.layer\.\d+\..*\.(query|key|value|dense)"
    beside = ("tokenizer", "vocab", "special_tokens")

    def items(self, rows: Rows, base: Path, kind: str = CLASSES) -> Items:
        """Return the rows as ids of the base's vocabulary."""
        return _Sentences(rows, _tokenizer(base), self.max_tokens, kind)

    def cell(self, value: Any) -> str:
        """Return the text without spaces around it."""
        return str(value).strip()

    def frozen(self, model: Any) -> list[torch.nn.Module]:
        """Return the embeddings, and the pooler, for no feature passes it."""
        pooler = getattr(model, "pooler", None)
        return [model.embeddings] if pooler is None else [model.embeddings, pooler]

    def means(self, hidden: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the mean over a row's tokens but the padding, at length one, shape [n, d]."""
        mask = batch["attention_mask"].unsqueeze(-1)
        return normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)

    def facts(self) -> dict[str, Any]:
        """Return where sentences are cut."""
        return {"max_tokens": self.max_tokens}


@lru_cache
def _tokenizer(base: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base)
