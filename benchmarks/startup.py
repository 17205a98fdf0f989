"""`python -m benchmarks.startup --label NAME`: the CPU seconds of commands that compute little or nothing.

The results of another state of the code stay beside this one's, under their own label.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.page import RESULTS
from benchmarks.speed.models import BASE, SIZES, TUNED, make_models

COMMANDS = {
    "--help": 0,
    "--version": 0,
    "methods": 0,
    "methods ties": 0,
    "plan unknown-method.yaml": 2,
    "plan absent-model.yaml": 2,
    "plan recipe.yaml": 0,
    "explain recipe.yaml -t mlp": 0,
    "merge recipe.yaml -o merged --overwrite": 0,
    "verify merged --no-load": 0,
}
"""Each command, and the exit code that it must have."""

RECIPE = f"""\
merge_method: ties
base_model: {BASE}
models:
{"".join(f"  - model: {name}{chr(10)}" for name in TUNED)}parameters: {{density: 0.2, weight: 0.3}}
"""


def main() -> None:
    """Measure every command, and write `startup.json` and `startup.md`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description=__doc__)
    parser.add_argument("--label", required=True, help="a name for the state of the code that is measured")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each command; the median is shown")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        make_models(work, SIZES["tiny"], lambda line: None)
        for name, text in {
            "recipe": RECIPE,
            "unknown-method": RECIPE.replace("ties", "tie"),
            "absent-model": RECIPE.replace(TUNED[0], "nothing"),
        }.items():
            (work / f"{name}.yaml").write_text(text)
        seconds = {
            command: _median(command.split(), code, work, options.repeats)
            for command, code in COMMANDS.items()
        }
    path = options.out / "startup.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    results[options.label] = {
        "date": f"{datetime.date.today()}",
        "machine": machine.describe(),
        "repeats": options.repeats,
        "cpu_seconds": seconds,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n")
    (options.out / "startup.md").write_text(markdown(results))


def _median(words: list[str], code: int, work: Path, repeats: int) -> float:
    """Return the median of the CPU seconds, of user and system together, after one run to warm up."""
    runs = [_run(words, code, work) for _ in range(repeats + 1)]
    return statistics.median(runs[1:])


def _run(words: list[str], code: int, work: Path) -> float:
    argv = [sys.executable, "-m", "submerge", *words]
    quiet = subprocess.DEVNULL
    # an installed package has its bytecode on disk: without it, its compilation is all that one would see
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    child = subprocess.Popen(argv, cwd=work, env=environment, stdout=quiet, stderr=quiet)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != code:
        raise SystemExit(f"submerge {' '.join(words)}: exit {child.returncode}, not {code}")
    return usage.ru_utime + usage.ru_stime


def markdown(results: dict[str, Any]) -> str:
    """Return the page: a row for each command, a column for each label."""
    last = list(results.values())[-1]
    versions = ", ".join(f"{k} {last['machine']['versions'][k]}" for k in ("torch", "transformers"))
    lines = [
        "# CPU seconds of commands that compute little or nothing",
        "",
        f"Made by `python -m benchmarks.startup` on {last['date']}.",
        "",
        f"{last['machine']['cpu']}, {last['machine']['cores']} cores; Python {last['machine']['python']}, "
        f"{versions}. User and system time of the whole process, median of {last['repeats']} runs.",
        "",
        f"| command | {' | '.join(results)} |",
        f"|---|{'---:|' * len(results)}",
    ]
    for command in COMMANDS:
        seconds = [column["cpu_seconds"].get(command) for column in results.values()]
        cells = ["–" if value is None else f"{value:.2f}" for value in seconds]
        lines.append(f"| `submerge {command}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
