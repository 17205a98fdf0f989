"""Where trained models and scores lie, and how finished work is recognised."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["Cache", "current", "done", "read", "work", "write_whole"]

MARKER = "replication.json"
"""Written last, into a finished folder: the config that it was made with, and what was measured."""


class Cache:
    """The folders of one suite. Nothing in them depends on where the cache lies.

    The base may lie in the folder of another suite, and heads and specialists in that of the suite's whole.
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


def read(folder: Path) -> dict[str, Any] | None:
    """Return what the marker of a finished folder says, or None."""
    try:
        found: dict[str, Any] = json.loads((folder / MARKER).read_text())
    except FileNotFoundError:
        return None
    return found


def done(folder: Path, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the marker if the folder was finished with this very config, else None."""
    found = read(folder)
    same = found is not None and found["config"] == json.loads(json.dumps(config))
    return found if same else None


def current(found: Mapping[str, Any], row: Mapping[str, Any], trained: Sequence[Any]) -> bool:
    """Say whether a marker is of a row with these settings, and of models trained like these.

    How the row's scale was looked for is not asked.
    """
    config, wanted = found["config"], json.loads(json.dumps(row))
    return config["trained"] == list(trained) and wanted.items() <= config["row"].items()


def work(root: Path) -> str:
    """Return how long all that lies in a folder took, by its markers."""
    found = [one for path in root.rglob(MARKER) if (one := read(path.parent))]
    trained, merged = (sum(one.get(key, 0.0) for one in found) / 60 for key in ("seconds", "seconds_in_all"))
    return (
        f"Work: encoders and models trained in {trained:.0f} min, rows merged, tuned and scored in "
        f"{merged:.0f} min, both of one process, besides the LM."
    )


@contextmanager
def write_whole(folder: Path, config: Mapping[str, Any]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Give a folder to write to, and a mapping for what is measured; keep both only if all goes well."""
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    found: dict[str, Any] = {}
    yield part, found
    (part / MARKER).write_text(json.dumps({"config": config, **found}, indent=2) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
