"""Rows of a data set on the Hugging Face Hub, for those who have a network. Needs `pip install datasets`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.replication.rows import HubSet, Rows, SuiteTask

__all__ = ["read", "rows"]


def read(task: SuiteTask, cell: Callable[[Any], Any]) -> tuple[Rows, Rows]:
    """Return training and test rows, each column by `cell`. Rows without a label (−1, none) are left out."""
    if (source := task.hub) is None:
        raise SystemExit(
            f"{task.name}: no set on the Hub gives this task — set SUBMERGE_DATA, or leave it out"
        )
    return rows(source, cell)


def rows(source: HubSet, cell: Callable[[Any], Any]) -> tuple[Rows, Rows]:
    """Return training and test rows of a set, each column by `cell`, without those that have no label."""
    try:
        from datasets import load_dataset
    except ImportError as missing:
        raise SystemExit(
            "no data: set SUBMERGE_DATA to the folder of data, or `pip install datasets` to load from the Hub"
        ) from missing
    parts = load_dataset(source.repo, source.config, revision=source.revision)
    return _part(parts[source.train], source, cell), _part(parts[source.test], source, cell)


def _part(part: Any, source: HubSet, cell: Callable[[Any], Any]) -> Rows:
    labelled: Rows = []
    for entry in part:
        label = entry[source.label]
        if source.scale:
            low, high = source.scale
            label = (float(label) - low) / (high - low)
        elif label is None or (isinstance(label, int) and label < 0):
            continue
        first, *rest = (cell(entry[column]) for column in source.columns)
        labelled.append((first, rest[0] if rest else None, label))
    return labelled
