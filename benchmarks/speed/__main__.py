"""`python -m benchmarks.speed`: how long whole merges take, beside mergekit and beside the floor."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.speed import machine, report
from benchmarks.speed.bench import Bench
from benchmarks.speed.measure import FailedRunError
from benchmarks.speed.models import SIZES, make_models
from benchmarks.speed.recipes import METHODS

HERE = Path(__file__).resolve().parent.parent


def main() -> int:
    """Run the benchmark; return the exit status."""
    options = _options()
    console = Console(stderr=True)

    def say(line: str) -> None:
        console.print(f"[dim]{datetime.datetime.now():%H:%M:%S}[/] {line}", highlight=False)

    shape = SIZES[options.size]
    work = options.work / options.size
    bench = Bench(work, make_models(work, shape, say), options.threads, options.repeats, say)
    path = options.out / "speed.json"
    results: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks.speed", *sys.argv[1:]]),
        "date": f"{datetime.date.today()}",
        "machine": machine.describe(),
        "load_before": os.getloadavg()[0],
        "size": options.size,
        "parameters": shape.parameters(),
        "threads": options.threads,
        "repeats": options.repeats,
    }
    earlier = _earlier(path, results, say) if options.reuse else {}
    try:
        results["floors"] = {str(n): floor for n, floor in bench.floors(options.methods).items()}
        results["methods"] = {}
        for method in options.methods:
            found: dict[str, Any] = {"inputs": len(METHODS[method].inputs())}
            if method in earlier:
                found["mergekit"] = earlier[method] | {"reused": True}
            elif not options.only_ours:
                found["mergekit"] = bench.mergekit(method)
            if not options.only_mergekit:
                found["submerge"] = bench.submerge(method)
            results["methods"][method] = found
    except FailedRunError as failure:
        console.print(f"[red]failed:[/] {failure}", highlight=False, markup=True)
        return 1

    options.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n")
    (options.out / "speed.md").write_text(report.markdown(results))
    report.plot(results, options.out / "speed.png")
    Console().print(report.table(results))
    say(f"wrote {path}, speed.md and speed.png")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    cache = os.environ.get("SUBMERGE_CACHE")
    parser.add_argument(
        "--work",
        type=Path,
        default=Path(cache) / "speed" if cache else HERE / "work",
        help="where models and outputs lie (default: $SUBMERGE_CACHE/speed, else benchmarks/work)",
    )
    parser.add_argument("--methods", type=_methods, default=list(METHODS), help="names, separated by commas")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each merge; the median is shown")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", choices=SIZES, default="1.1b")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--reuse", action="store_true", help="take mergekit's numbers from the last results")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--only-ours", action="store_true", help="do not run mergekit")
    only.add_argument("--only-mergekit", action="store_true", help="do not run Submerge")
    return parser.parse_args()


def _methods(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in METHODS]:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; there are {', '.join(METHODS)}")
    return names


def _earlier(path: Path, results: dict[str, Any], say: Any) -> dict[str, Any]:
    """Return method -> mergekit's earlier numbers, if they hold for this machine and these settings."""
    if not path.exists():
        say(f"nothing to reuse: {path} does not exist")
        return {}
    found = json.loads(path.read_text())
    settings = ("size", "parameters", "threads")
    if not machine.same(found["machine"], results["machine"]) or any(
        found[name] != results[name] for name in settings
    ):
        say(f"nothing to reuse: {path} is of another machine or other settings")
        return {}
    return {name: merge["mergekit"] for name, merge in found["methods"].items() if "mergekit" in merge}


if __name__ == "__main__":
    sys.exit(main())
