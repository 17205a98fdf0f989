"""The names of the classes that heads answer with, as each task's own configuration has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

__all__ = ["named"]

Label = str | None | list[Any]


def named(
    logits: torch.Tensor, lead: Sequence[int], widths: Sequence[int], tasks: Sequence[Mapping[str, Any]]
) -> list[Label]:
    """Return for each input the name of the class with the largest logit, by its task's `id2label`.

    `logits` are [B, .., C], filled up with −inf; `lead` [B] are the tasks whose heads answered. For tags
    there is a list of names, one a token; for problems of several labels a list of those above 0; for a
    number None. A class without a name is `LABEL_3`, as in transformers.
    """
    return [_label(row[..., : widths[t]], tasks[t]) for row, t in zip(logits, lead, strict=True)]


def _label(logits: torch.Tensor, task: Mapping[str, Any]) -> Label:
    names = task.get("id2label") or {}

    def name(number: int) -> str:
        return str(names.get(str(number), f"LABEL_{number}"))

    if logits.shape[-1] == 1:
        return None
    if logits.ndim > 1:
        return [_label(row, task) for row in logits]
    if task.get("problem_type") == "multi_label_classification":
        return [name(c) for c in (logits > 0).nonzero().flatten().tolist()]
    return name(int(logits.argmax()))
