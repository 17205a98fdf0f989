"""`python -m benchmarks.calibration_cost`: time and memory of a step, beside a plain implementation.

Each way runs in a process of its own, on models of real sizes with random weights: what a step costs does
not depend on them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import page
from benchmarks.calibration_cost import report
from benchmarks.calibration_cost.subjects import SUBJECTS
from benchmarks.console import listed, say
from benchmarks.process import measure

WAYS = ("plain", "submerge")


def main() -> int:
    """Run the benchmark; return the exit status."""
    options = _options()
    results = page.header("benchmarks.calibration_cost") | {
        "load_before": os.getloadavg()[0],
        "threads": options.threads,
        "size": options.size,
        "steps": options.steps,
    }
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        results["subjects"] = {name: _measured(name, Path(work), options) for name in options.subjects}
    page.write(options.out, "calibration_cost", results, report.markdown(results))
    say(f"wrote calibration_cost.json and .md in {options.out}")
    return 0


def _measured(name: str, work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return what both ways took on one model."""
    folder = work / name
    folder.mkdir()
    SUBJECTS[name].adapters(folder)
    found = {}
    for way in WAYS:
        command = [sys.executable, "-m", "benchmarks.calibration_cost.measured", name, way]
        command += ["--folder", str(folder)]
        for key in ("size", "steps", "threads"):
            command += [f"--{key}", str(getattr(options, key))]
        measure(command, folder / f"{way}.log")
        found[way] = one = json.loads((folder / f"{way}.json").read_text())
        say(f"{name}, {way}: {one['seconds']:.1f} s a step, {report.step_bytes(one) / 1e6:.0f} MB")
    return {"title": SUBJECTS[name].title, "adapters": SUBJECTS[name].count, "ways": found}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calibration_cost", description=__doc__)
    parser.add_argument("--subjects", type=listed(SUBJECTS), default=list(SUBJECTS))
    parser.add_argument("--size", type=int, default=2, help="inputs of a task in a step")
    parser.add_argument("--steps", type=int, default=1, help="steps whose mean is taken")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="threads of torch")
    parser.add_argument("--work", type=Path, help="where the adapters lie meanwhile")
    parser.add_argument("--out", type=Path, default=page.RESULTS, help="default: benchmarks/results")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
