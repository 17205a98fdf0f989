"""`python -m benchmarks.speed`: how long whole merges take, beside mergekit and beside the floor.

`python -m benchmarks.speed profile METHOD...` shows where a method's time goes.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from rich.console import Console

from benchmarks import page
from benchmarks.console import listed, say
from benchmarks.process import FailedRunError
from benchmarks.speed import profile, report
from benchmarks.speed.bench import Result, SpeedBench
from benchmarks.speed.models import DTYPES, EIGHT, SIZES, TUNED, make_models, work_option
from benchmarks.speed.picture import plot
from benchmarks.speed.recipes import METHODS, timed_recipes
from benchmarks.speed.results import Part, default_out, open_results
from benchmarks.speed.rows import BARRED

MODELS = {3: TUNED, 8: EIGHT}
"""Number of tuned models -> their names."""
PASSES = (1, 2)
"""The passes of the floors that are measured."""


def main(arguments: list[str]) -> int:
    """Run the benchmark; return the exit status."""
    if arguments[:1] == ["profile"]:
        return profile.main(arguments[1:])
    options = _options(arguments)
    bench, part = _bench(options), _part(options)
    try:
        _measure(bench, part, options)
    except FailedRunError as failure:
        say(f"failed: {failure}")
        return 1
    shown = BARRED if BARRED in part.results["parts"] else part.key
    plot(part.results, shown, options.out / "speed.png")
    for table in report.tables(part.results):
        Console().print(table)
    say(f"wrote {options.out / 'speed.json'}, speed.md and speed.png")
    return 0


def _bench(options: argparse.Namespace) -> SpeedBench:
    tuned = MODELS[options.models]
    work = options.work / (options.size if options.input_dtype == "bfloat16" else f"{options.size}-float32")
    models = make_models(work, SIZES[options.size], say, tuned=tuned, dtype=options.input_dtype)
    return SpeedBench(
        work,
        _key(options),
        models,
        timed_recipes(tuned, options.input_dtype),
        options.threads,
        options.repeat,
        options.mergekit_repeat,
        say,
    )


def _part(options: argparse.Namespace) -> Part:
    new = page.header("benchmarks.speed") | {
        "load_before": os.getloadavg()[0],
        "size": options.size,
        "parameters": SIZES[options.size].parameters(),
        "threads": options.threads,
    }
    facts = {"models": options.models, "dtype": options.input_dtype}

    def save(results: Result) -> None:
        page.write(options.out, "speed", results, report.markdown(results), indent=2)

    return open_results(options.out / "speed.json", new, _key(options), facts, save, say)


def _key(options: argparse.Namespace) -> str:
    return f"{options.models}-{options.input_dtype}"


def _measure(bench: SpeedBench, part: Part, options: argparse.Namespace) -> None:
    """Measure each method with both tools, and before that the floors of its number of inputs."""
    floors: set[int] = set()
    for method, recipe in bench.recipes.items():
        if method not in options.only:
            continue
        inputs = len(recipe.inputs())
        facts = {"inputs": inputs, "passes": recipe.passes, "draws": recipe.draws}
        for passes in PASSES if options.floors and inputs not in floors else ():
            if not (options.resume and part.floor(inputs, passes)):
                part.add_floor(inputs, passes, bench.floor(method, passes))
        floors.add(inputs)
        for tool in options.tools:
            if not (options.resume and part.merge(method, tool)):
                part.add_merge(method, tool, getattr(bench, tool)(method), facts)


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    work_option(parser, "where models and outputs lie")
    parser.add_argument(
        "--only", type=listed(METHODS), default=list(METHODS), help="names, separated by commas"
    )
    parser.add_argument("--models", type=int, choices=MODELS, default=3, help="how many are merged")
    parser.add_argument("--input-dtype", choices=DTYPES, default="bfloat16", help="of models and result")
    parser.add_argument(
        "--repeat", type=int, default=3, help="runs of floors and merges; the median is shown"
    )
    parser.add_argument("--mergekit-repeat", type=int, default=1, help="runs of each of mergekit's merges")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", choices=SIZES, default="1.1b")
    parser.add_argument("--out", type=Path, help="where results go (of small models default: where they lie)")
    parser.add_argument("--resume", action="store_true", help="leave what the results have as it is")
    only = parser.add_mutually_exclusive_group()
    only.add_argument(
        "--only-ours", action="store_const", dest="tools", const=["submerge"], help="no mergekit"
    )
    only.add_argument("--only-mergekit", action="store_const", dest="tools", const=["mergekit"])
    parser.set_defaults(tools=["mergekit", "submerge"])
    options = parser.parse_args(arguments)
    options.floors = "submerge" in options.tools
    options.out = options.out or default_out(options)
    return options


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
