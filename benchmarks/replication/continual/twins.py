"""Two tasks on the same images, which no rule that looks at images can tell apart: what else may help.

`numbers` asks which Kannada digit is written, `strokes` how it is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import submerge
from benchmarks.replication import cache as store
from benchmarks.replication.bench import Scores
from benchmarks.replication.cache import Result, cached
from benchmarks.replication.continual.merge import ContinualBench
from benchmarks.replication.continual.rows import MERGED
from benchmarks.replication.continual.scores import TaskScorer, final

__all__ = ["TWINS", "VARIANTS", "compare_twins"]

TWINS = ("numbers", "strokes")
VARIANTS: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "default": ({}, {}),
    "image": ({}, {"key": "image"}),
    "text": ({}, {"key": "text"}),
    "both": ({}, {"key": "both"}),
    "shared": ({"share_projector": TWINS[0]}, {"projectors": "merged"}),
}
"""Name -> how the second task is added, and how both are exported."""


def compare_twins(bench: ContinualBench) -> Result | None:
    """Return the scores by what is compared with prototypes, and what `add` warns of.

    None where one of the tasks is not learnt.
    """
    adapters = {task: bench.suite.individual(bench.cache, bench.seed, task) for task in TWINS}
    trained = [store.read(folder) for folder in adapters.values()]
    if None in trained:
        return None

    scorer = TaskScorer(replace(bench.suite, orders=(TWINS,)), bench.cache, bench.scorer.data)

    def make(part: Path, result: Result) -> None:
        result["individual"] = {
            task: scorer.scores(scorer.adapted(adapter), "test", [task])[task]
            for task, adapter in adapters.items()
        }
        for name, (added, exported) in VARIANTS.items():
            result[name], result[f"warnings, {name}"] = _scores(
                scorer, adapters, part / name, added, exported
            )
            bench.say(f"twins, {name}: {100 * final([result[name]]):.1f}")

    variants = {name: [dict(one) for one in options] for name, options in VARIANTS.items()}
    return cached(bench.place("twins"), {"trained": trained, "variants": variants}, make)


def _scores(
    scorer: TaskScorer,
    adapters: Mapping[str, Path],
    folder: Path,
    added: Mapping[str, Any],
    exported: Mapping[str, Any],
) -> tuple[Scores, list[str]]:
    state, warnings = submerge.Continual.begin(folder / "state", str(scorer.base)), []
    for task, adapter in adapters.items():
        more = added if task == TWINS[1] else {}
        warnings = state.add(task, str(adapter), str(scorer.inputs[task]), **more)
    out = folder / "merged"
    state.export(out, form="checkpoint", **exported)
    merged = exported.get("projectors") == MERGED
    model = scorer.load(out, MERGED) if merged else submerge.load(out)  # by what was exported
    return scorer.scores(model, "test", TWINS), warnings
