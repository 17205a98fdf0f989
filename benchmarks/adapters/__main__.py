"""`python -m benchmarks.adapters`: methods on singular vectors, on adapters and on checkpoints."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks import page
from benchmarks.adapters import report
from benchmarks.adapters.bench import ADAPTER_MERGES, CHECKPOINT_MERGES, AdapterBench
from benchmarks.adapters.models import (
    CHECKPOINTS,
    SIZES,
    SPECTRA,
    make_adapters,
    make_checkpoints,
    modules,
)
from benchmarks.console import listed, say
from benchmarks.process import FailedRunError
from benchmarks.speed.models import BASE, TUNED, Shape, work_option

ADAPTERS, RANK = 8, 16
SPECIALISTS, SPECIALIST_RANK = 3, 128
"""Adapters of modalities, as wide as those that multimodal models are trained with."""
PARTS = {
    "adapters": "adapters",
    "checkpoints": "adapters-checkpoints",
    "specialists": "adapters-specialists",
}
"""Part -> its results' file name."""


def main() -> int:
    """Run the parts that are asked for; return the exit status."""
    options = _options()
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    bench = AdapterBench(options.work, options.threads, say)
    for part in options.parts:
        results = page.header("benchmarks.adapters") | {
            "load_before": os.getloadavg()[0],
            "threads": options.threads,
        }
        try:
            tables = TABLES[part](bench, options, results)
        except FailedRunError as failure:
            say(f"failed: {failure}")
            return 1
        name = PARTS[part]
        page.write(options.out, name, results, report.markdown(part, results, tables), indent=2)
        if part != "specialists":  # a single table of a few numbers
            report.plot(tables, options.out / f"{name}.png")
        for table in report.show(tables):
            Console().print(table)
        say(f"wrote {options.out / name}.json and .md")
    return 0


def _adapters(bench: AdapterBench, options: argparse.Namespace, results: dict[str, Any]) -> list[page.Table]:
    cut = _adapter_merges(bench, options, results, "adapters", ADAPTERS, RANK)
    merges = [merge for merge in ADAPTER_MERGES if merge.method in options.methods]
    results |= bench.adapter_matrices(cut, ADAPTERS, RANK, merges)
    return report.adapter_tables(results)


def _specialists(
    bench: AdapterBench, options: argparse.Namespace, results: dict[str, Any]
) -> list[page.Table]:
    rank = min(SPECIALIST_RANK, SIZES[options.size].hidden // 4)
    _adapter_merges(bench, options, results, "specialists", SPECIALISTS, rank)
    return [report.whole_merges(results)]


def _adapter_merges(
    bench: AdapterBench,
    options: argparse.Namespace,
    results: dict[str, Any],
    part: str,
    count: int,
    rank: int,
) -> Shape:
    """Merge `count` adapters by each method, note what that takes, and return the shape of their model."""
    shape = SIZES[options.size]
    cut = replace(shape, layers=min(options.layers or shape.layers, shape.layers))
    folder = bench.work / f"{options.size}-{part}"
    if cut != shape:
        folder = folder.with_name(f"{folder.name}-{cut.layers}-layers")
    paths = make_adapters(folder, cut, count, rank, bench.say)
    merges = [merge for merge in ADAPTER_MERGES if merge.method in options.methods]
    results |= {"size": options.size, "layers": cut.layers, "modules": len(modules(cut)), "rank": rank}
    results["adapters"] = count
    results["merges"] = {merge.name: bench.merge_process(merge, paths, None) for merge in merges}
    return cut


def _checkpoints(
    bench: AdapterBench, options: argparse.Namespace, results: dict[str, Any]
) -> list[page.Table]:
    size = CHECKPOINTS[options.size]
    merges = [merge for merge in CHECKPOINT_MERGES if merge.method in options.methods]
    results["spectra"] = {}
    for spectrum in options.spectra:
        shape, models = make_checkpoints(bench.work, size, spectrum, options.layers, bench.say)
        results |= {"size": size, "layers": shape.layers, "parameters": shape.parameters()}
        matrices = bench.checkpoint_matrices(shape, models, merges)
        tuned = [models[name] for name in TUNED]
        as_process = [merge for merge in merges if merge.name not in options.not_whole]
        results["spectra"][spectrum] = {
            "matrices": matrices,
            "merges": {merge.name: bench.merge_process(merge, tuned, models[BASE]) for merge in as_process},
        }
    return report.checkpoint_tables(results)


TABLES = {"adapters": _adapters, "checkpoints": _checkpoints, "specialists": _specialists}
"""Part -> what runs it, and returns its tables."""


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.adapters", description=__doc__)
    work_option(parser, "where models and outputs lie, as for benchmarks.speed")
    methods = dict.fromkeys(merge.method for merge in (*ADAPTER_MERGES, *CHECKPOINT_MERGES))
    parser.add_argument("--parts", type=listed(PARTS), default=list(PARTS), help="of: " + ", ".join(PARTS))
    parser.add_argument("--methods", type=listed(methods), default=list(methods), help="separated by commas")
    parser.add_argument("--spectra", type=listed(SPECTRA), default=list(SPECTRA), help="of full fine-tunes")
    parser.add_argument("--size", choices=SIZES, default="7b")
    parser.add_argument("--layers", type=int, help="only so many blocks of the models")
    parser.add_argument(
        "--not-whole",
        type=lambda text: text.split(";"),
        default=[],
        help="merges of checkpoints that are timed on single weights only, separated by semicolons",
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=page.RESULTS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
