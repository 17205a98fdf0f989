"""Writes a report, with the seeds that an earlier one has, and whose models lie in another cache."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import page
from benchmarks.console import say

__all__ = ["GROUPED", "publish", "with_earlier"]

GROUPED = ("kinds", "ways")
"""Where a report has its seeds if it has several groups of them; else they are in "seeds"."""
Seeds = dict[tuple[str, str], Any]
"""(Group, number) -> the rows of a seed; one group has no name."""


def publish(
    found: Mapping[str, Any],
    stem: str,
    root: Path,
    options: argparse.Namespace,
    markdown: Callable[[Mapping[str, Any]], str],
    draw: Callable[[Mapping[str, Any], Path, str], list[Path]],
    *mappings: str,
) -> None:
    """Write what was found in the cache `root`, completed by the earlier report: JSON, page and pictures."""
    out = page.out_folder(root, options)
    results = with_earlier(out / f"{stem}.json", found, *mappings)
    page.write(out, stem, results, markdown(results))
    pictures = draw(results, out, stem)
    say(f"wrote in {out}: {', '.join([f'{stem}.json', f'{stem}.md', *(one.name for one in pictures)])}")


def with_earlier(file: Path, results: Mapping[str, Any], *mappings: str) -> dict[str, Any]:
    """Return results with the seeds that the report of a file has, and that they lack.

    A seed is never put together from two reports, for models that were trained on two processors are not the
    same to the last bit. `made` says of each seed how, when and where it was measured. Nothing is kept of a
    report of other settings.

    Args:
        file: the JSON of the earlier report, which may be missing.
        results: a report with seeds.
        mappings: keys of what does not belong to a seed, and is completed entry by entry.
    """
    ours = _seeds(results)
    made = dict.fromkeys(map(_label, ours), _header(results))
    earlier = json.loads(file.read_text()) if file.exists() else None
    if earlier and earlier["suite"] != json.loads(json.dumps(results["suite"])):
        say(f"{file.name} is of a suite with other settings: none of its seeds is kept")
        earlier = None
    if not earlier:
        return {**results, "made": made}
    theirs = _seeds(earlier)
    before = dict.fromkeys(map(_label, theirs), _header(earlier)) | earlier.get("made", {})
    every = dict(sorted((theirs | ours).items(), key=lambda pair: int(pair[0][1])))
    completed = {key: earlier.get(key, {}) | results[key] for key in mappings}
    made = {label: (before | made)[label] for label in map(_label, every)}
    return {**results, **_as_report(every, results), **completed, "made": made}


def _header(report: Mapping[str, Any]) -> dict[str, Any]:
    return {name: report[name] for name in ("command", "date", "machine")}


def _seeds(report: Mapping[str, Any]) -> Seeds:
    groups = next((report[key] for key in GROUPED if key in report), None)
    groups = {"": report["seeds"]} if groups is None else groups
    return {(group, seed): rows for group, seeds in groups.items() for seed, rows in seeds.items()}


def _as_report(seeds: Seeds, like: Mapping[str, Any]) -> dict[str, Any]:
    groups: dict[str, dict[str, Any]] = {}
    for (group, seed), rows in seeds.items():
        groups.setdefault(group, {})[seed] = rows
    grouped = [key for key in GROUPED if key in like]
    return {grouped[0]: groups} if grouped else {"seeds": groups.get("", {})}


def _label(place: tuple[str, str]) -> str:
    group, seed = place
    return f"{group}, seed {seed}" if group else f"seed {seed}"
