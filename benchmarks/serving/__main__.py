"""`python -m benchmarks.serving`: latency, storage and compression of MASS on the tasks of text-8."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch

from benchmarks import page
from benchmarks.console import say
from benchmarks.replication import splits
from benchmarks.replication.cache import Cache
from benchmarks.replication.specialists import Specialists
from benchmarks.replication.text import TEXT_8
from benchmarks.serving import report
from benchmarks.serving.measure import ServingBench


def main() -> int:
    """Run the benchmark; return the exit status."""
    options = _options()
    torch.set_num_threads(options.threads)
    cache = Cache(options.cache, *TEXT_8.places) if options.cache else Cache.default(*TEXT_8.places)
    data = os.environ.get("SUBMERGE_DATA")
    items = splits.load(TEXT_8, Path(data) if data else None)
    bench = ServingBench(Specialists(TEXT_8, cache, items, options.kind, 0), say)
    results = page.header("benchmarks.serving") | {
        "load_before": os.getloadavg()[0],
        "threads": options.threads,
        "latency": bench.latency(options.batch, options.repeats),
        "sets": bench.sets((options.repeats + 1) // 2),
        "batch": options.batch,
    }
    if not options.no_compression:
        results["compression"] = bench.compression(options.items)
        results["items"] = options.items
    bench.clean()
    page.write(options.out, "serving", results, report.markdown(results))
    report.draw(results, options.out / "serving.png")
    say(f"wrote serving.json, .md and .png in {options.out}")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--batch", type=int, default=64, help="inputs of a batch, as many of each task")
    parser.add_argument(
        "--repeats", type=int, default=9, help="runs of each way, one after the other in turns"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--items", type=int, default=100, help="validation items a task for compression")
    parser.add_argument("--kind", choices=("full", "lora"), default="full", help="fine-tunes that are served")
    parser.add_argument("--no-compression", action="store_true", help="latency and storage alone")
    parser.add_argument("--cache", type=Path, help="of the replication bench, which trains the fine-tunes")
    parser.add_argument("--out", type=Path, default=page.RESULTS, help="default: benchmarks/results")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
