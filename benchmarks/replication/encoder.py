"""A transformers encoder as a function from rows to unit features."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import normalize

from benchmarks.replication.suite import Row

__all__ = ["Items", "features", "load", "masked_means", "tokenise"]

BATCH_TOKENS = 4096
"""Of one batch without gradients, padding included."""


class Items:
    """Rows as token ids, sorted by length so that little is padded; `labels` are in the rows' order."""

    def __init__(self, rows: Sequence[Row], tokenizer: Any, most: int) -> None:
        first, second = [row[0] for row in rows], [row[1] for row in rows]
        pairs = second if any(text is not None for text in second) else None
        found = tokenizer(first, pairs, truncation=True, max_length=most, return_token_type_ids=True)
        self.ids, self.types = found["input_ids"], found["token_type_ids"]
        self.labels = torch.tensor([row[2] for row in rows])

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, which: Sequence[int], device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
        """Return the model's arguments for these rows, padded to the longest of them."""
        longest = max(len(self.ids[i]) for i in which)
        shape = (len(which), longest)
        ids, types, mask = (torch.zeros(shape, dtype=torch.long) for _ in range(3))
        for row, i in enumerate(which):
            length = len(self.ids[i])
            ids[row, :length] = torch.tensor(self.ids[i])
            types[row, :length] = torch.tensor(self.types[i])
            mask[row, :length] = 1
        found = {"input_ids": ids, "token_type_ids": types, "attention_mask": mask}
        return {name: value.to(device) for name, value in found.items()}

    def batches(self, tokens: int = BATCH_TOKENS) -> list[list[int]]:
        """Return the rows' numbers by length, in batches of about so many tokens."""
        found: list[list[int]] = [[]]
        for i in sorted(range(len(self)), key=lambda i: len(self.ids[i])):
            if found[-1] and (len(found[-1]) + 1) * len(self.ids[i]) > tokens:
                found.append([])
            found[-1].append(i)
        return found


def tokenise(rows: Sequence[Row], base: Path, most: int) -> Items:
    """Return the rows as ids of the base's vocabulary."""
    return Items(rows, _tokenizer(base), most)


@lru_cache
def _tokenizer(base: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base)


def load(folder: Path, base: Path, device: torch.device | str = "cpu") -> Any:
    """Return the model of a folder, for use: a checkpoint, or a PEFT adapter on the base."""
    from transformers import AutoModel

    if (folder / "adapter_config.json").exists():
        from peft import PeftModel

        model = PeftModel.from_pretrained(AutoModel.from_pretrained(base), folder).merge_and_unload()
    else:
        model = AutoModel.from_pretrained(folder)
    return model.to(device).eval()


def masked_means(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean over a row's tokens, at length one, shape [n, d]."""
    mask = mask.unsqueeze(-1)
    return normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


@torch.inference_mode()
def features(model: Any, items: Items, *, layers: bool = False) -> torch.Tensor:
    """Return unit features on the CPU, shape [n, d], or of every layer, shape [n, layers + 1, d]."""
    parts, order = [], []
    for which in items.batches():
        batch = items.batch(which, model.device)
        out = model(**batch, output_hidden_states=layers)
        states = out.hidden_states if layers else (out.last_hidden_state,)
        means = [masked_means(state, batch["attention_mask"]) for state in states]
        parts.append(torch.stack(means, 1) if layers else means[0])
        order += which
    found = torch.cat(parts).float().cpu()
    return found[torch.tensor(order).argsort()]
