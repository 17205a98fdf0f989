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

from benchmarks.process import measure_from_cache, merge_command
from benchmarks.speed import floor, outputs
from benchmarks.speed.models import weights_file
from benchmarks.speed.recipes import TimedRecipe

__all__ = ["Result", "SpeedBench", "median"]

Result = dict[str, Any]
"""`runs` of one command, when they were `measured`, and what was seen of their outputs."""
Inside = Callable[[str], Mapping[str, Any]]
Look = Callable[[Path], None]
INSIDE = {"seconds": "seconds_inside", "bytes_read": "bytes_read", "workers": "workers"}
"""What a merge reports of itself, and what it is called beside the numbers of the process."""


@dataclass
class SpeedBench:
    """The settings of a benchmark, and the steps it consists of.

    `part` names the models and their format: samples of mergekit's outputs are kept under it.
    """

    work: Path
    part: str
    models: Mapping[str, Path]
    recipes: Mapping[str, TimedRecipe]
    threads: int
    repeat: int
    mergekit_repeat: int
    say: Callable[[str], None]
    _out: Path = field(init=False)

    def __post_init__(self) -> None:
        self._out = self.work / "out"

    def floor(self, method: str, passes: int) -> Result:
        """Time what it takes just to read a method's inputs, `passes` times, and to write one."""
        inputs = self.recipes[method].inputs()
        self.say(f"floor: read {len(inputs)} models, {passes} times, write 1")
        files = [str(weights_file(self.models[name])) for name in inputs]
        program = [sys.executable, floor.__file__, str(self.threads), str(passes)]
        command = [*program, str(self._out / "out.bin"), *files]
        log = self.work / "floor.log"
        return self._repeat(self.repeat, command, inputs, log, lambda text: {"seconds_inside": float(text)})

    def mergekit(self, method: str) -> Result:
        """Time `mergekit-yaml` with its default options; keep a sample of what comes out."""
        self.say(f"{method}: mergekit")
        program = str(Path(sys.executable).with_name("mergekit-yaml"))
        options = ["--num-threads", str(self.threads), "--quiet"]
        command = [program, str(self._recipe(method)), str(self._out), *options]
        log, inputs = self.work / f"mergekit-{method}.log", self.recipes[method].inputs()

        def look(out: Path) -> None:
            outputs.save_sample(outputs.sample(out), self._sample(method))

        return self._repeat(self.mergekit_repeat, command, inputs, log, look=look)

    def submerge(self, method: str) -> Result:
        """Time `submerge merge`; compare its runs' bytes, and a sample with mergekit's where it is known.

        A run before those that count lets numba compile what it compiles once for an installation.
        """
        self.say(f"{method}: submerge")
        command = merge_command(self._recipe(method), self._out, self.threads, "--json", "--quiet")
        log, recipe = self.work / f"submerge-{method}.log", self.recipes[method]
        digests: list[str] = []
        samples: list[outputs.Sample] = []

        def look(out: Path) -> None:
            digests.append(outputs.digest(out))
            samples.append(outputs.sample(out))

        result = self._repeat(1 + self.repeat, command, recipe.inputs(), log, _reported, look)
        del result["runs"][0]
        result |= {"digests": sorted(set(digests)), "compared": len(digests)}
        theirs = None if recipe.draws else outputs.load_sample(self._sample(method))
        if theirs is not None:
            result["agreement"] = outputs.agreement(samples[-1], theirs, recipe.dtype)
        return result

    def _repeat(
        self,
        times: int,
        command: list[str],
        inputs: Sequence[str],
        log: Path,
        inside: Inside = lambda text: {},
        look: Look | None = None,
    ) -> Result:
        """Run a command several times; `inside` reads what it said of itself, `look` gets what it wrote."""
        files = [weights_file(self.models[name]) for name in inputs]
        runs = []
        for _ in range(times):
            run = measure_from_cache(command, log, self._out, files, look)
            runs.append(asdict(run) | dict(inside(log.read_text())))
        return {"runs": runs, "measured": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M}"}

    def _recipe(self, method: str) -> Path:
        path = self.work / f"{method}.yaml"
        self.recipes[method].write(path, self.models)
        return path

    def _sample(self, method: str) -> Path:
        return self.work / f"mergekit-{self.part}-{method}.safetensors"


def _reported(text: str) -> dict[str, Any]:
    report = json.loads(text)
    return {name: report[key] for key, name in INSIDE.items()}


def median(result: Mapping[str, Any] | None, key: str = "seconds") -> float | None:
    """Return the median of a number over a result's runs, or None where it was not measured."""
    values = [run[key] for run in result["runs"] if run.get(key) is not None] if result else []
    return statistics.median(values) if values else None
