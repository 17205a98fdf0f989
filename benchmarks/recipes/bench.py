"""Runs a recipe by both tools in turn, as whole processes, and compares what comes out."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.console import Say
from benchmarks.process import measure_from_cache, merge_command
from benchmarks.recipes.cases import RecipeCase
from benchmarks.recipes.sampled import sampled
from benchmarks.speed import outputs
from benchmarks.speed.models import weights_file

__all__ = ["RecipeBench"]

Look = Callable[[Path], None]


@dataclass(frozen=True)
class RecipeBench:
    """How recipes are measured, and where everything lies meanwhile."""

    work: Path
    threads: int
    repeat: int
    say: Say

    def measure(self, name: str, case: RecipeCase) -> dict[str, Any] | None:
        """Return both tools' runs, ours and mergekit's in turn, and which share of sampled values is equal.

        A run of ours before those that count lets numba compile what it compiles once for an installation.
        None comes back where this version of Submerge has no such command.
        """
        if not _has_command(case.ours):
            self.say(f"{name}: there is no `submerge {case.ours}` yet")
            return None
        models = case.models(self.work, self.say)
        recipe = self.work / f"{name}.yaml"
        case.write(recipe, models)
        samples: dict[str, outputs.Sample] = {}
        runs: dict[str, list[dict[str, Any]]] = {"submerge": [], "mergekit": []}
        for number in range(1 + self.repeat):
            for tool, command in self._commands(case, recipe).items():
                if tool == "submerge" or number:
                    run = self._run(name, tool, command, models, samples)
                    runs[tool] += [run] if number else []
        agreement = outputs.agreement(samples["submerge"], samples["mergekit"], "bfloat16")
        return {tool: {"runs": own} for tool, own in runs.items()} | {
            "title": case.title,
            "program": case.theirs,
            "inputs_bytes": sum(weights_file(folder).stat().st_size for folder in models.values()),
            "agreement": agreement,
        }

    def _commands(self, case: RecipeCase, recipe: Path) -> dict[str, list[str]]:
        program = str(Path(sys.executable).with_name(case.theirs))
        out = ["--out-path", str(self._out)] if case.theirs == "mergekit-multi" else [str(self._out)]
        options = [str(self._parts) if option == "PARTS" else option for option in case.options]
        theirs = [program, str(recipe), *out, *options, "--num-threads", str(self.threads), "--quiet"]
        ours = merge_command(recipe, self._out, self.threads, "--quiet", command=case.ours)
        return {"submerge": ours, "mergekit": theirs}

    def _run(
        self,
        name: str,
        tool: str,
        command: list[str],
        models: Mapping[str, Path],
        samples: dict[str, outputs.Sample],
    ) -> dict[str, Any]:
        def look(out: Path) -> None:
            samples[tool] = sampled(out)

        self.say(f"{name}: {tool}")
        files = [weights_file(folder) for folder in models.values()]
        try:
            return asdict(
                measure_from_cache(command, self.work / f"{name}-{tool}.log", self._out, files, look)
            )
        finally:
            shutil.rmtree(self._parts, ignore_errors=True)

    @property
    def _out(self) -> Path:
        return self.work / "out"

    @property
    def _parts(self) -> Path:
        return self.work / "parts"


def _has_command(name: str) -> bool:
    """Return whether this version of Submerge has a command of this name."""
    command = [sys.executable, "-m", "submerge", name, "--help"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
