"""`python -m benchmarks.recipes`: time and memory of whole recipes, beside mergekit's.

Stacked layers, several documents, a mixture of experts, and a union of vocabularies. The models are made
once; they take 2.5 GB of disk. All cases take about five minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from benchmarks import machine, page
from benchmarks.console import listed, say
from benchmarks.process import FailedRunError
from benchmarks.recipes import report
from benchmarks.recipes.bench import RecipeBench
from benchmarks.recipes.cases import CASES
from benchmarks.speed.models import work_option

SETTINGS = ("threads", "repeat")


def main(arguments: list[str]) -> int:
    """Run the benchmark; return the exit status."""
    options = _options(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    bench = RecipeBench(options.work, options.threads, options.repeat, say)
    results = page.header("benchmarks.recipes") | {
        "load_before": os.getloadavg()[0],
        "threads": options.threads,
        "repeat": options.repeat,
        "cases": {},
        "missing": [],
    }
    earlier = _earlier(options.out / "recipes.json", results)
    try:
        for name, case in CASES.items():
            measured = bench.measure(name, case) if name in options.only else earlier.get(name)
            if measured is not None:
                results["cases"][name] = measured
            elif name in options.only:
                results["missing"].append(case.title)
            page.write(options.out, "recipes", results, report.markdown(results))
    except FailedRunError as failure:
        say(f"failed: {failure}")
        return 1
    say(f"wrote recipes.json and recipes.md in {options.out}")
    return 0


def _earlier(path: Path, results: dict[str, object]) -> dict[str, dict[str, object]]:
    """Return the cases of an earlier run, if it was on the same machine with the same settings."""
    old = json.loads(path.read_text()) if path.exists() else {}
    fits = bool(old) and all(old.get(key) == results[key] for key in SETTINGS)
    return old["cases"] if fits and machine.same(old["machine"], results["machine"]) else {}  # type: ignore[arg-type]


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recipes", description=__doc__)
    work_option(parser, "where models and outputs lie")
    parser.add_argument(
        "--only", type=listed(CASES), default=list(CASES), help="names, separated by commas; others stay"
    )
    parser.add_argument("--repeat", type=int, default=3, help="pairs of runs; the median is shown")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=page.RESULTS, help="default: benchmarks/results")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
