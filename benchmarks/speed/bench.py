"""Times every merge with mergekit and with Submerge, one whole process after another."""

from __future__ import annotations

import datetime
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.process import ProcessRun, measure_from_cache, merge_command
from benchmarks.speed import floor
from benchmarks.speed.models import weights_file
from benchmarks.speed.recipes import METHODS

__all__ = ["SpeedBench", "median"]

Result = dict[str, Any]
Inside = Callable[[str], float]


@dataclass
class SpeedBench:
    """The settings of a benchmark, and the steps it consists of."""

    work: Path
    models: Mapping[str, Path]
    threads: int
    repeats: int
    say: Callable[[str], None]
    _out: Path = field(init=False)

    def __post_init__(self) -> None:
        self._out = self.work / "out"

    def floors(self, methods: Sequence[str]) -> dict[int, Result]:
        """Return number of models read -> what it takes just to read them and write one."""
        results: dict[int, Result] = {}
        for inputs in {len(METHODS[m].inputs()): METHODS[m].inputs() for m in methods}.values():
            self.say(f"floor: read {len(inputs)} models, write 1")
            files = [weights_file(self.models[name]) for name in inputs]
            log = self.work / "floor.log"
            target = str(self._out / "out.bin")
            command = [sys.executable, floor.__file__, str(self.threads), target, *map(str, files)]
            results[len(inputs)] = self._repeat(command, inputs, log, float)
        return results

    def mergekit(self, method: str) -> Result:
        """Time `mergekit-yaml` with its default options."""
        program = str(Path(sys.executable).with_name("mergekit-yaml"))
        options = ["--num-threads", str(self.threads), "--quiet"]
        command = [program, str(self._recipe(method)), str(self._out), *options]
        return self._tool("mergekit", method, command)

    def submerge(self, method: str) -> Result:
        """Time `submerge merge`."""
        command = merge_command(self._recipe(method), self._out, self.threads, "--json", "--quiet")
        return self._tool("submerge", method, command, lambda text: json.loads(text)["seconds"])

    def _tool(self, tool: str, method: str, command: list[str], inside: Inside | None = None) -> Result:
        self.say(f"{method}: {tool}")
        return self._repeat(command, METHODS[method].inputs(), self.work / f"{tool}-{method}.log", inside)

    def _repeat(self, command: list[str], inputs: Sequence[str], log: Path, inside: Inside | None) -> Result:
        """Run a command several times; `inside` reads the seconds that it measured itself."""
        runs = []
        for _ in range(self.repeats):
            run = asdict(self._once(command, inputs, log))
            runs.append(run | {"seconds_inside": inside(log.read_text()) if inside else None})
        return {
            "runs": runs,
            "measured": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }

    def _once(self, command: list[str], inputs: Sequence[str], log: Path) -> ProcessRun:
        files = [weights_file(self.models[name]) for name in inputs]
        return measure_from_cache(command, log, self._out, files)

    def _recipe(self, method: str) -> Path:
        path = self.work / f"{method}.yaml"
        METHODS[method].write(path, self.models)
        return path


def median(result: Result, key: str = "seconds") -> float | None:
    """Return the median of a number over a result's runs, or None where it was not measured."""
    values = [run[key] for run in result["runs"] if run[key] is not None]
    return statistics.median(values) if values else None
