"""`python -m benchmarks.speed`: how long whole merges take, beside mergekit and beside the floor."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import machine, page
from benchmarks.console import listed, say
from benchmarks.process import FailedRunError
from benchmarks.speed import report
from benchmarks.speed.bench import SpeedBench
from benchmarks.speed.models import SIZES, make_models, work_option
from benchmarks.speed.recipes import METHODS


def main() -> int:
    """Run the benchmark; return the exit status."""
    options = _options()
    shape = SIZES[options.size]
    work = options.work / options.size
    bench = SpeedBench(work, make_models(work, shape, say), options.threads, options.repeats, say)
    results = page.header("benchmarks.speed") | {
        "load_before": os.getloadavg()[0],
        "size": options.size,
        "parameters": shape.parameters(),
        "threads": options.threads,
        "repeats": options.repeats,
    }
    try:
        _measure(bench, options, results)
    except FailedRunError as failure:
        say(f"failed: {failure}")
        return 1
    page.write(options.out, "speed", results, report.markdown(results), indent=2)
    report.plot(results, options.out / "speed.png")
    Console().print(report.table(results))
    say(f"wrote {options.out / 'speed.json'}, speed.md and speed.png")
    return 0


def _measure(bench: SpeedBench, options: argparse.Namespace, results: dict[str, Any]) -> None:
    earlier = _earlier(options.out / "speed.json", results) if options.reuse else {}
    results["floors"] = {str(n): floor for n, floor in bench.floors(options.methods).items()}
    results["methods"] = {}
    for method in options.methods:
        result: dict[str, Any] = {"inputs": len(METHODS[method].inputs())}
        if method in earlier:
            result["mergekit"] = earlier[method] | {"reused": True}
        elif not options.only_ours:
            result["mergekit"] = bench.mergekit(method)
        if not options.only_mergekit:
            result["submerge"] = bench.submerge(method)
        results["methods"][method] = result


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    work_option(parser, "where models and outputs lie")
    parser.add_argument(
        "--methods", type=listed(METHODS), default=list(METHODS), help="names, separated by commas"
    )
    parser.add_argument("--repeats", type=int, default=1, help="runs of each merge; the median is shown")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", choices=SIZES, default="1.1b")
    parser.add_argument("--out", type=Path, default=page.RESULTS)
    parser.add_argument("--reuse", action="store_true", help="take mergekit's numbers from the last results")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--only-ours", action="store_true", help="do not run mergekit")
    only.add_argument("--only-mergekit", action="store_true", help="do not run Submerge")
    return parser.parse_args()


def _earlier(path: Path, results: dict[str, Any]) -> dict[str, Any]:
    """Return method -> mergekit's earlier numbers, if they hold for this machine and these settings."""
    if not path.exists():
        say(f"nothing to reuse: {path} does not exist")
        return {}
    last = json.loads(path.read_text())
    settings = ("size", "parameters", "threads")
    if not machine.same(last["machine"], results["machine"]) or any(
        last[name] != results[name] for name in settings
    ):
        say(f"nothing to reuse: {path} is of another machine or other settings")
        return {}
    return {name: merge["mergekit"] for name, merge in last["methods"].items() if "mergekit" in merge}


if __name__ == "__main__":
    sys.exit(main())
