"""Rows of a data set on the Hugging Face Hub, for those who have a network. Needs `pip install datasets`."""

from __future__ import annotations

from benchmarks.replication.suite import HubSet, Rows

__all__ = ["read"]


def read(source: HubSet) -> tuple[Rows, Rows]:
    """Return training and test rows. Rows without a label (−1) are left out."""
    try:
        from datasets import load_dataset
    except ImportError as missing:
        raise SystemExit(
            "no data: set SUBMERGE_DATA to the folder of data, or `pip install datasets` to load from the Hub"
        ) from missing
    parts = load_dataset(source.repo, source.config, revision=source.revision)
    return _rows(parts[source.train], source), _rows(parts[source.test], source)


def _rows(part: object, source: HubSet) -> Rows:
    rows: Rows = []
    for entry in part:  # type: ignore[attr-defined]
        label = entry[source.label]
        if source.scale:
            low, high = source.scale
            label = (float(label) - low) / (high - low)
        elif int(label) < 0:
            continue
        first, *rest = (str(entry[column]).strip() for column in source.texts)
        rows.append((first, rest[0] if rest else None, label))
    return rows
