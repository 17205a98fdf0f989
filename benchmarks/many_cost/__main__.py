"""`python -m benchmarks.many_cost`: time, memory and bytes of the steps of `submerge many`.

The base's file is a header and a hole, and inputs are drawn at random: it needs no model. All blocks take
25 GB of disk, and two hours of two cores; with `--blocks` fewer are measured, and scaled.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import page
from benchmarks.adapters.models import SIZES
from benchmarks.console import listed, say
from benchmarks.many_cost import report
from benchmarks.many_cost.measured import STEPS
from benchmarks.many_cost.subject import GrowingState
from benchmarks.process import measure

KEEP = ("none", "full")


def main() -> int:
    """Run the benchmark; return the exit status."""
    options = _options()
    subject = GrowingState(options.size, options.blocks or SIZES[options.size].layers, options.tokens)
    results = page.header("benchmarks.many_cost") | {
        "load_before": os.getloadavg()[0],
        **asdict(subject),
        "all_blocks": SIZES[options.size].layers,
        "threads": options.threads,
        "steps": {},
    }
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        folder = Path(work)
        subject.make(folder, say)
        for keep in options.keep:
            steps = results["steps"][keep] = {}
            for step in options.steps:
                steps[step] = _step(step, keep, folder, subject, options.threads)
                page.write(options.out, "many_cost", results, report.markdown(results))
            shutil.rmtree(folder / "state")
            shutil.rmtree(folder / "merged", ignore_errors=True)
    say(f"wrote many_cost.json and .md in {options.out}")
    return 0


def _step(step: str, keep: str, folder: Path, subject: GrowingState, threads: int) -> dict[str, Any]:
    """Return what a step took, from the outside, and what it tells of the state."""
    command = [sys.executable, "-m", "benchmarks.many_cost.measured", step, "--folder", str(folder)]
    settings = asdict(subject) | {"keep": keep, "threads": threads}
    for name, value in settings.items():
        command += [f"--{name}", str(value)]
    log = folder / "step.log"
    run = measure(command, log)
    facts: dict[str, Any] = json.loads(log.read_text().splitlines()[-1])
    say(f"--keep {keep}, {step}: {run.seconds:.0f} s, {run.peak_bytes / 1e9:.2f} GB")
    return {**facts, **asdict(run)}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.many_cost", description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="7b")
    parser.add_argument("--blocks", type=int, help="only so many; all by default")
    parser.add_argument("--tokens", type=int, default=12288, help="of each task")
    parser.add_argument("--keep", type=listed(KEEP), default=list(KEEP))
    parser.add_argument("--steps", type=listed(STEPS), default=list(STEPS))
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="threads of torch")
    parser.add_argument("--work", type=Path, help="where the state lies meanwhile")
    parser.add_argument("--out", type=Path, default=page.RESULTS, help="default: benchmarks/results")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
