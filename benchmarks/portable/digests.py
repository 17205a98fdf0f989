"""`python -m benchmarks.portable digests`: do methods that work by chunks have the published bytes here?

Models of integers are merged by each of these methods, with kernels that numba compiled and with numpy in
their place, by one worker and by two, and with kernels for the oldest processor of this architecture, which
has short vectors and no fused multiply-add; each setting in a process of its own. A table goes to standard
output: the digests of the results, whether they are the same under all settings, and whether they are those
of `benchmarks/results/digests.json`. The exit status is 1 where one is not.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks import page
from benchmarks.portable.golden import ANY_PROCESSOR, DTYPES, data_digest, golden_recipes, make_golden

__all__ = ["main", "table"]

PLAIN = "numba, 1 worker"
SETTINGS: dict[str, tuple[dict[str, str], int]] = {
    PLAIN: ({"SUBMERGE_KERNELS": "numba"}, 1),
    "numba, 2 workers": ({"SUBMERGE_KERNELS": "numba"}, 2),
    "numba for any processor": (ANY_PROCESSOR, 1),
    "numpy, 1 worker": ({"SUBMERGE_KERNELS": "numpy"}, 1),
    "numpy, 2 workers": ({"SUBMERGE_KERNELS": "numpy"}, 2),
}
"""Name -> environment and workers."""
PUBLISHED = page.RESULTS / "digests.json"
Digests = Mapping[str, Mapping[str, str]]
"""Method -> number format -> digest."""


def main(arguments: list[str]) -> int:
    """Merge under all settings, and print the table; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.portable digests", description=__doc__)
    parser.add_argument("--write", action="store_true", help="publish what comes out, if all are the same")
    parser.add_argument("--child", nargs=2, metavar=("FOLDER", "THREADS"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        print(json.dumps(_digests(Path(options.child[0]), int(options.child[1]))))
        return 0
    with tempfile.TemporaryDirectory() as place:
        make_golden(Path(place))
        digests = {name: _in_process(place, *setting) for name, setting in SETTINGS.items()}
    same = all(found == digests[PLAIN] for found in digests.values())
    if options.write and same:
        PUBLISHED.write_text(json.dumps(digests[PLAIN], indent=1) + "\n")
    published: Digests = json.loads(PUBLISHED.read_text()) if PUBLISHED.exists() else {}
    print("\n".join(table(digests, published)))
    return 0 if same and digests[PLAIN] == published else 1


def table(digests: Mapping[str, Digests], published: Digests) -> Iterator[str]:
    """Yield the lines of a table: a row for each method, with the digests under the first setting."""
    first, *others = digests
    yield f"| method | {' | '.join(DTYPES)} | {' | '.join(others)} | as published |"
    yield "|---" * (len(DTYPES) + len(others) + 2) + "|"
    for method, row in digests[first].items():
        cells = [f"`{row[dtype][:12]}`" for dtype in DTYPES]
        cells += ["same" if digests[other][method] == row else "**other**" for other in others]
        cells.append("yes" if published.get(method) == row else "**no**" if published else "–")
        yield f"| `{method}` | {' | '.join(cells)} |"


def _in_process(folder: str, environment: dict[str, str], threads: int) -> Digests:
    command = [sys.executable, "-m", "benchmarks.portable", "digests", "--child", folder, f"{threads}"]
    run = subprocess.run(
        command, env={**os.environ, **environment}, check=True, capture_output=True, text=True
    )
    digests: Digests = json.loads(run.stdout)
    return digests


def _digests(folder: Path, threads: int) -> Digests:
    import submerge

    digests: dict[str, dict[str, str]] = {}
    settings = submerge.Settings(threads=threads)
    with tempfile.TemporaryDirectory() as out:
        for method, dtype, recipe in golden_recipes(folder):
            merged = Path(out, f"{method}-{dtype}")
            submerge.merge(recipe, merged, settings=settings)
            digests.setdefault(method, {})[dtype] = data_digest(merged)
    return digests
