"""`python -m benchmarks.adapters`: methods on singular vectors, on adapters and on checkpoints."""

from __future__ import annotations

import argparse
import os
import sys
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
from benchmarks.speed.models import BASE, TUNED, work_option

ADAPTERS, RANK = 8, 16
PARTS = ("adapters", "checkpoints")


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
            if part == "adapters":
                tables = report.adapter_tables(_adapters(bench, options, results))
            else:
                tables = report.checkpoint_tables(_checkpoints(bench, options, results))
        except FailedRunError as failure:
            say(f"failed: {failure}")
            return 1
        name = "adapters" if part == "adapters" else "adapters-checkpoints"
        page.write(options.out, name, results, report.markdown(part, results, tables), indent=2)
        report.plot(tables, options.out / f"{name}.png")
        for table in report.show(tables):
            Console().print(table)
        say(f"wrote {options.out / name}.json, .md and .png")
    return 0


def _adapters(bench: AdapterBench, options: argparse.Namespace, results: dict[str, Any]) -> dict[str, Any]:
    shape = SIZES[options.size]
    layers = min(options.layers or shape.layers, shape.layers)
    folder = bench.work / f"{options.size}-adapters"
    if layers != shape.layers:
        folder = folder.with_name(f"{folder.name}-{layers}-layers")
    cut = type(shape)(**{**vars(shape), "layers": layers})
    paths = make_adapters(folder, cut, ADAPTERS, RANK, bench.say)
    merges = [merge for merge in ADAPTER_MERGES if merge.method in options.methods]
    results |= {"size": options.size, "layers": layers, "modules": len(modules(cut)), "rank": RANK}
    results["adapters"] = ADAPTERS
    results["merges"] = {merge.name: bench.merge_process(merge, paths, None) for merge in merges}
    results |= bench.adapter_matrices(cut, ADAPTERS, RANK, merges)
    return results


def _checkpoints(bench: AdapterBench, options: argparse.Namespace, results: dict[str, Any]) -> dict[str, Any]:
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
    return results


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
