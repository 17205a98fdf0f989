"""What is said of a merge: what deserves a look before it begins, and what it did and cost."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

from submerge.cli._common import print_warnings
from submerge.errors import counted, size

if TYPE_CHECKING:
    from submerge.engine import MergePlan, MergeReport

__all__ = ["print_late_warnings", "print_notes", "print_summary"]

_MOST_LINES = 10
"""Tensors of one kind that have lines of their own."""

_TREATED = {
    "merge": "merged",
    "mixture": "of experts and gates",
    "mix": "projectors, mixed for each image",
    "keep": "kept (integer or boolean)",
    "base": "taken from the base",
    "drop": "left to the base",
}


def print_notes(plan: MergePlan, *, verbose: bool) -> None:
    """Print on standard error what deserves a look, and if asked for, what is not merged as it is."""
    print_warnings(plan.warnings)
    if verbose:
        _print_reasons(plan)


def _print_reasons(plan: MergePlan) -> None:
    """Print how vocabularies differ, and why tensors are not merged as they are."""
    for line in plan.vocabulary:
        print(f"vocabulary: {line}", file=sys.stderr)
    for tensor in plan.tensors:
        if tensor.why:
            print(f"{tensor.name}: {_TREATED[tensor.treatment]}: {tensor.why}", file=sys.stderr)


def print_late_warnings(report: MergeReport, printed: Sequence[str]) -> None:
    """Print on standard error the warnings of a merge that were not printed before it began."""
    print_warnings(line for line in report.warnings if line not in printed)
    nonfinite = [
        f"NaN or Inf in {name}: {', '.join(f'{count} in {where}' for where, count in counts.items())}"
        for name, counts in report.nonfinite.items()
    ]
    print_warnings(_first(nonfinite, "NaN or Inf in {} more"))


def _first(lines: Sequence[str], rest: str) -> list[str]:
    """Return the first lines of those of single tensors, and one with the number of the `rest`."""
    left = len(lines) - _MOST_LINES
    return [*lines[:_MOST_LINES], *([rest.format(counted(left, "tensor"))] if left > 0 else [])]


def print_summary(report: MergeReport) -> None:
    """Print what a merge did and cost."""
    tensors = ", ".join(f"{count} {_TREATED[kind]}" for kind, count in report.tensors.items())
    lines = [
        f"{report.seconds:.1f} s · read {size(report.bytes_read)}, wrote {size(report.bytes_written)} · "
        f"{size(report.rate)}/s",
        f"{report.workers} workers: {report.reading:.0%} of their time reading, {report.writing:.0%} "
        f"writing · peak memory {size(report.peak_memory_bytes)}",
        f"tensors: {tensors}",
    ]
    if report.calibration is not None:
        first, last = report.calibration["loss"]
        steps, seconds = report.calibration["steps"], report.calibration["seconds"]
        lines.append(f"weights learned in {steps} steps, {seconds:.1f} s: loss {first:.5f} → {last:.5f}")
    lines += _figures(report)
    if report.resumed:
        lines.append(f"{report.resumed} ranges taken over from the interrupted run")
    differs = [
        f"{name} is kept from the base; it is not the same in {', '.join(models)}"
        for name, models in report.differs.items()
    ]
    lines += [f"note: {line}" for line in _first(differs, "as much holds for {} more")]
    if report.serve:
        lines.append(f"serve it with vLLM: {report.serve}")
    for line in lines:
        typer.echo(line)


def _figures(report: MergeReport) -> list[str]:
    """Return one line for each share that the method or the adapter's rank keeps of the updates."""
    lines = []
    matrices = [of for name, figures in report.figures.items() for of in _by_matrix(name, figures)]
    for key, what in (("kept", "kept by the shared subspaces"), ("kept_by_rank", "kept by the rank")):
        shares = [(float(figures[key]), name) for name, figures in matrices if key in figures]
        if shares:
            worst, where = min(shares)
            mean = sum(share for share, _ in shares) / len(shares)
            lines.append(
                f"{what}: {mean:.1%} of the updates' energy on average, least {worst:.1%} in {where}"
            )
    return lines


def _by_matrix(name: str, figures: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the figures of a tensor, and those of each map where it is a fused matrix, with names."""
    maps = figures.get("maps", {}).items()
    return [(name, figures), *((f"{name} ({which})", of_map) for which, of_map in maps)]
