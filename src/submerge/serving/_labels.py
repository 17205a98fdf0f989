"""The names of the classes that heads answer with, as each task's own configuration has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

__all__ = ["named", "tell_labels"]

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
    def name(number: int) -> str:
        return _name(task, number)

    if logits.shape[-1] == 1:
        return None
    if logits.ndim > 1:
        return [_label(row, task) for row in logits]
    if task.get("problem_type") == "multi_label_classification":
        return [name(c) for c in (logits > 0).nonzero().flatten().tolist()]
    return name(int(logits.argmax()))


def tell_labels(config: Any, widths: Sequence[int], tasks: Sequence[Mapping[str, Any]]) -> None:
    """Give a model's configuration the tasks' names of classes, which pipelines of transformers show.

    They see one table for all inputs. Where tasks call a class otherwise, it is called by all of their names,
    as `bad (reviews) or person (questions)`. `widths` are those of the tasks' heads. Of problems of one type,
    such as those of several labels, pipelines read scores by it.
    """
    names = {number: _of_all(number, widths, tasks) for number in range(max(widths))}
    config.id2label, config.label2id = names, {name: number for number, name in names.items()}
    types = {task.get("problem_type") for task in tasks}
    config.problem_type = types.pop() if len(types) == 1 else None


def _of_all(number: int, widths: Sequence[int], tasks: Sequence[Mapping[str, Any]]) -> str:
    """Return what the tasks that have a class call it."""
    own = [task for task, width in zip(tasks, widths, strict=True) if width > number]
    called = [
        _name(task, number) if width > 1 else "a number"
        for task, width in zip(tasks, widths, strict=True)
        if width > number
    ]
    if max(widths) == 1 or len(set(called)) == 1:
        return _name(own[0], number)
    return " or ".join(f"{name} ({task['name']})" for name, task in zip(called, own, strict=True))


def _name(task: Mapping[str, Any], number: int) -> str:
    return str((task.get("id2label") or {}).get(str(number), f"LABEL_{number}"))
