"""`python -m benchmarks.speed profile METHOD...`: where a method's time goes, as a tree of stacks.

Without a method the three that took the most CPU time in the results. The page goes beside the results:
`speed-profile.md`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import page
from benchmarks.console import say
from benchmarks.process import measure_from_cache
from benchmarks.speed.models import SIZES, make_models, weights_file, work_option
from benchmarks.speed.recipes import METHODS
from benchmarks.speed.results import default_out
from benchmarks.speed.rows import BARRED, rows
from benchmarks.speed.sampler import INTERVAL_S

__all__ = ["Node", "main", "slowest", "tree", "tree_lines"]

SLOWEST = 3
LEAST = 0.01
"""The share of all samples below which a branch is not shown."""
JOINED = 0.005
"""A function stands on one line with its callee, if it has less than this share of all samples beside it."""


@dataclass
class Node:
    """A function in its place of the stack: how many samples were taken in it, and what it called."""

    count: int = 0
    callees: dict[str, Node] = field(default_factory=dict)


def tree(stacks: Sequence[tuple[Sequence[str], int]]) -> Node:
    """Return the root of all stacks, each with its count."""
    root = Node()
    for names, count in stacks:
        root.count += count
        node = root
        for name in names:
            node = node.callees.setdefault(name, Node())
            node.count += count
    return root


def tree_lines(node: Node, total: int, depth: int = 0) -> Iterator[str]:
    """Yield a node's branches as lines, the largest first: the share of the total in %, and the functions."""
    for name, callee in sorted(node.callees.items(), key=lambda item: -item[1].count):
        if callee.count < LEAST * total:
            continue
        names, last = [name], callee
        while (only := _only_callee(last, JOINED * total)) is not None:
            names.append(only)
            last = last.callees[only]
        yield f"{100 * callee.count / total:5.1f}  {'  ' * depth}{' › '.join(_short(names))}"
        yield from tree_lines(last, total, depth + 1)


def _short(names: Sequence[str]) -> Iterator[str]:
    """Yield names, without the file where the next one has the same."""
    for name, following in zip(names, [*names[1:], ""], strict=True):
        function, _, file = name.rpartition(" (")
        yield function if function and following.endswith(f" ({file}") else name


def _only_callee(node: Node, beside: float) -> str | None:
    return next((n for n, callee in node.callees.items() if node.count - callee.count <= beside), None)


def slowest(results: dict[str, Any]) -> list[str]:
    """Return the methods that took the most CPU time in the results of three models in bfloat16."""
    measured = [row for row in rows(results, results["parts"][BARRED]) if row.cpu is not None]
    return [row.method for row in sorted(measured, key=lambda row: -(row.cpu or 0))[:SLOWEST]]


def main(arguments: list[str]) -> int:
    """Profile methods, and write the page; return the exit status."""
    options = _options(arguments)
    methods = options.methods or slowest(json.loads((options.out / "speed.json").read_text()))
    if unknown := set(methods) - METHODS.keys():
        raise SystemExit(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(METHODS)}")
    work = options.work / options.size
    models = make_models(work, SIZES[options.size], say)
    results: dict[str, Any] = page.header("benchmarks.speed") | {"size": options.size}
    lines = ["# Where the time of the slowest methods goes", "", *page.made_by(results)]
    lines += [ABOUT, ""]
    for method in methods:
        lines += _section(method, _sampled(method, work, models), SIZES[options.size].parameters())
        print("\n".join(lines[-20:]))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "speed-profile.md").write_text("\n".join(lines) + "\n")
    return 0


ABOUT = f"""\
One worker, warm page cache, kernels compiled before. Every {1000 * INTERVAL_S:g} ms the stack was taken of
each thread that does not wait for another. A line has the share of all samples in %, and functions, from
caller to callee, with their files in the package; `kernel` is a loop that numba compiled, and the last
name of a branch is the line that ran. Branches of less than {100 * LEAST:g} % are left out."""


def _sampled(method: str, work: Path, models: dict[str, Path]) -> dict[str, Any]:
    """Merge twice in processes of their own, and return the samples of the second run."""
    recipe, counts = work / f"{method}.yaml", work / f"profile-{method}.json"
    METHODS[method].write(recipe, models)
    inputs = [weights_file(models[name]) for name in METHODS[method].inputs()]
    module, out = "benchmarks.speed.sampler", work / "out"
    command = [sys.executable, "-m", module, str(recipe), str(out), str(counts)]
    for turn in ("to warm up", "to be sampled"):
        say(f"{method}: a merge {turn}")
        measure_from_cache(command, work / "profile.log", out, inputs)
    sampled: dict[str, Any] = json.loads(counts.read_text())
    return sampled


def _section(method: str, sampled: dict[str, Any], parameters: int) -> list[str]:
    root = tree(sampled["stacks"])
    return [
        f"## {method}",
        "",
        f"{sampled['seconds']:.1f} s, of them {sampled['cpu_seconds']:.1f} s of CPU "
        f"({1e9 * sampled['cpu_seconds'] / parameters:.1f} ns an element of the output), while sampled; "
        f"{root.count} samples in {sampled['looks']} looks.",
        "",
        "```text",
        *tree_lines(root, max(root.count, 1)),
        "```",
        "",
    ]


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed profile", description=__doc__)
    parser.add_argument("methods", nargs="*", metavar="METHOD")
    work_option(parser, "where models and outputs lie")
    parser.add_argument("--size", choices=SIZES, default="1.1b")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    options.out = options.out or default_out(options)
    return options
