"""Where trained models and scores lie, and how finished work is recognised."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["Cache", "Result", "cached", "current", "folder_name", "read", "timed", "trained", "work"]

MARKER = "replication.json"
"""Written last, into a finished folder: the config that it was made with, and what was measured."""

Result = dict[str, Any]
"""What a marker says."""


class Cache:
    """The folders of one suite. Nothing in them depends on where the cache lies.

    The base may lie in the folder of another suite, and heads and specialists in that of the suite that this
    one is a part of.
    """

    def __init__(self, root: Path, suite: str, home: str = "", base: str = "") -> None:
        self.root, self.home = root / suite, root / (home or suite)
        self.base = root / (base or suite) / "base"

    @classmethod
    def default(cls, suite: str, home: str = "", base: str = "") -> Cache:
        """Return the cache under $SUBMERGE_CACHE, or under benchmarks/work."""
        place = os.environ.get("SUBMERGE_CACHE")
        root = Path(place) if place else Path(__file__).resolve().parent.parent / "work"
        return cls(root / "replication", suite, home, base)

    def heads(self, seed: int) -> Path:
        """Return the folder of a seed's frozen heads."""
        return self.home / f"seed{seed}" / "heads"

    def specialist(self, seed: int, kind: str, task: str) -> Path:
        """Return the folder of a trained model or adapter."""
        return self.home / f"seed{seed}" / kind / task

    def result(self, seed: int, kind: str, row: str) -> Path:
        """Return the folder of a merge's recipe and scores, or of a ceiling's scores."""
        return self.root / f"seed{seed}" / f"{kind}-results" / row

    def served(self, seed: int, kind: str, row: str) -> Path:
        """Return the folder of the scores of a way to serve, or of what was merged for it."""
        return self.root / f"seed{seed}" / f"{kind}-routing" / row


def folder_name(row: str) -> str:
    """Return the name of the folder of a row whose name is for people."""
    return row.replace(" ", "-").replace("'", "")


def cached(folder: Path, config: Mapping[str, Any], make: Callable[[Path, Result], None]) -> Result:
    """Return the marker of a folder that was finished with this very config; else make the folder first.

    `make` gets an empty folder to write to, and a mapping for what is measured. Both are kept only if it
    succeeds, and what was there before stays until then. Keys of the config are never renamed: a cache that
    was made earlier would be made anew.
    """
    config = json.loads(json.dumps(config))
    marker = read(folder)
    if marker is not None and marker["config"] == config:
        return marker
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    measured: Result = {}
    make(part, measured)
    (part / MARKER).write_text(json.dumps({"config": config, **measured}, indent=2) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
    return json.loads((folder / MARKER).read_text())  # as it will be read the next time


@contextmanager
def timed(measured: Result, key: str = "seconds") -> Iterator[None]:
    """Measure how long something takes."""
    started = time.perf_counter()
    yield
    measured[key] = round(time.perf_counter() - started, 2)


def read(folder: Path) -> Result | None:
    """Return what the marker of a finished folder says, or None."""
    try:
        marker: Result = json.loads((folder / MARKER).read_text())
    except FileNotFoundError:
        return None
    return marker


def trained(folders: Sequence[Path], what: str) -> list[Any]:
    """Return the configs that models were trained with; end the program where some are missing."""
    markers = [read(folder) for folder in folders]
    if missing := [folder.name for folder, marker in zip(folders, markers, strict=True) if not marker]:
        raise SystemExit(f"not trained yet: {', '.join(missing)} ({what}) — run `train` first")
    return [marker["config"] for marker in markers if marker]


def current(marker: Mapping[str, Any], row: Mapping[str, Any], trained: Sequence[Any]) -> bool:
    """Say whether a marker is of a row with these settings, and of models trained like these.

    How the row's scale was looked for is not asked.
    """
    config, wanted = marker["config"], json.loads(json.dumps(row))
    return bool(config["trained"] == list(trained) and wanted.items() <= config["row"].items())


def work(root: Path) -> str:
    """Return how long all that lies in a folder took, by its markers."""
    markers = [marker for path in root.rglob(MARKER) if (marker := read(path.parent))]
    trained, merged = (
        sum(marker.get(key, 0.0) for marker in markers) / 60 for key in ("seconds", "seconds_in_all")
    )
    return (
        f"Work: encoders and models trained in {trained:.0f} min, rows merged, tuned and scored in "
        f"{merged:.0f} min, both of one process, besides the LM."
    )
