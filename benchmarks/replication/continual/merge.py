"""Merges the adapters of a seed by every method, and follows a merge from the first task to the last."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.console import Say, silent
from benchmarks.replication import cache as store
from benchmarks.replication.bench import Bench, MergeOptions, Scores
from benchmarks.replication.cache import Cache, Result, cached, trained
from benchmarks.replication.continual.hide import HIDE, fuse
from benchmarks.replication.continual.rows import DISCRIMINANT, MIXED, NSC, SERVED, START, TOLD, ContinualRow
from benchmarks.replication.continual.scores import TaskScorer, final, forgetting, mean
from benchmarks.replication.continual.states import GrownStates
from benchmarks.replication.continual.suite import ContinualSuite
from benchmarks.replication.methods import AVERAGE, write_recipe
from benchmarks.replication.specialists import MEMORY

__all__ = ["ContinualBench"]


class ContinualBench(Bench):
    """One seed: its order of tasks, and the adapter of each."""

    memory = MEMORY

    def __init__(
        self,
        suite: ContinualSuite,
        cache: Cache,
        seed: int,
        scorer: TaskScorer,
        options: MergeOptions,
        say: Say = silent,
    ) -> None:
        self.suite, self.cache, self.seed, self.scorer = suite, cache, seed, scorer
        self.order = suite.orders[seed]
        self.adapters = {task: suite.individual(cache, seed, task) for task in suite.tasks}
        super().__init__(suite.base(cache), list(self.adapters.values()), "lora", options, say)
        asked = {name: suite.facts()[name] for name in ("validation", "test", "samples")}
        self.states = GrownStates(self.base, self.adapters, scorer, self.place("states"))
        self.facts = {"trained": trained(self.models, f"seed {seed}"), "tasks": list(suite.tasks), **asked}

    def place(self, name: str, seed: int | None = None) -> Path:
        """Return the folder of a row's results."""
        return self.cache.root / f"seed{self.seed if seed is None else seed}" / "results" / name

    def reference(self, name: str) -> Result | None:
        """Return the test scores of what is no merge; None where it is not trained."""
        folders, asked = self._asked(name)
        if any(folder and store.read(folder) is None for folder in folders):
            self.say(f"seed {self.seed} {name}: not trained")
            return None

        def make(_: Path, result: Result) -> None:
            result["steps"] = [
                self.scorer.scores(self.scorer.adapted(folder), "test", tasks)
                for folder, tasks in zip(folders, asked, strict=True)
            ]
            if name == "individual":
                result["steps"] = [{task: score for step in result["steps"] for task, score in step.items()}]
            self.say(f"seed {self.seed} {name}: {100 * final(result['steps']):.1f}")

        trainings = trained([folder for folder in folders if folder], name)
        return cached(self.place(name), self.config({"reference": name, "adapters": trainings}), make)

    def _asked(self, name: str) -> tuple[Sequence[Path | None], Sequence[Sequence[str]]]:
        """Return the adapters of a reference, and which tasks each is asked."""
        if name == "base":
            return [None], [self.order]
        if name == "individual":
            return [self.adapters[task] for task in self.order], [[task] for task in self.order]
        if name == "joint":
            return [self.suite.joint(self.cache, self.seed)], [self.order]
        so_far = [self.order[:count] for count in range(1, len(self.order) + 1)]
        return self.suite.sequence(self.cache, self.seed, name), so_far

    def merge_tasks(self, row: ContinualRow, scale: float | None, part: Path, tasks: Sequence[str]) -> Path:
        """Merge the adapters of these tasks, or export a state of them; return the new folder."""
        if row.state is not None:
            state, out = self.states.of(row.state, tasks), part / "merged"
            scaled: dict[str, Any] = {} if scale is None else {"scale": scale}
            how = {"form": "checkpoint", "projectors": row.projectors, "overwrite": True} | scaled
            state.export(out, **how, **row.mix)
            return out
        adapters = {task: self.adapters[task] for task in tasks}
        if row.merge is HIDE:
            adapters = fuse(adapters, part / "fused")
        prototypes = self._prototypes(row) if row.projectors == MIXED else None
        inputs = self.scorer.inputs if row.merge is NSC else None
        recipe = row.recipe(self.base, adapters, scale, inputs=inputs, prototypes=prototypes)
        return self.merge_by(write_recipe(recipe, part / "recipe.yaml"))

    def _prototypes(self, row: ContinualRow) -> Path:
        """Return the folder of the tasks' prototypes, which all merges and all seeds have in common."""
        folder, files = self.cache.root / "prototypes" / row.compared, "files"

        def make(part: Path, _: Result) -> None:
            average = replace(row, merge=AVERAGE)
            recipe = average.recipe(self.base, self.adapters, None, inputs=self.scorer.inputs)
            merged = self.merge_by(write_recipe(recipe, part / "recipe.yaml"))
            merged.with_name(f"{merged.name}.prototypes").rename(part / files)
            shutil.rmtree(merged)

        facts = {"tasks": list(self.suite.tasks), "samples": self.suite.samples, "by": row.compared}
        facts["statistics"] = True  # of images, which files of earlier versions lack
        cached(folder, facts | {"base": store.read(self.base)}, make)
        return folder / files

    def run(self, row: ContinualRow) -> Result:
        """Return the scores of a merge of all tasks: from the cache, or by tuning and testing it.

        They do not depend on the order of the tasks. Of mixed projectors there are also those with the task
        of each question told.
        """
        name, tasks = f"seed {self.seed} {row.name}", self.suite.tasks

        def tune_and_test(part: Path, result: Result) -> Path:
            def validate(scale: float | None) -> Scores:
                model = self.scorer.load(self.merge_tasks(row, scale, part, tasks), row.projectors)
                scores = self.scorer.scores(model, "validation", tasks)
                self.say(f"{name} × {scale}: validation {100 * final([scores]):.1f}")
                return scores

            result |= self.choose(row.merge, validate, mean, near=self._near(row))
            out = part / "merged"  # without a scale it is the one that was validated
            if row.merge.factor:
                out = self.merge_tasks(row, result["scale"], part, tasks)
            model = self.scorer.load(out, row.projectors)
            result["test"] = self.scorer.scores(model, "test", tasks)
            for way in row.served[1:]:
                served = self.scorer.load(out, row.projectors, way)
                result[way] = self.scorer.scores(served, "test", tasks)
            if row.projectors == MIXED:
                result[TOLD] = self.scorer.scores(model, "test", tasks, told=True)
            return out

        def line(result: Result) -> str:
            ways = [f", {way} {100 * final([result[way]]):.1f}" for way in (*SERVED, TOLD) if way in result]
            return f"{name}: {100 * final([result['test']]):.1f}{''.join(ways)}"

        facts = row.facts() | {"grid": list(self.grid(row.merge))}
        return self.measured(self.place(row.name), facts, tune_and_test, line)

    def serve(self, row: ContinualRow) -> Result:
        """Return the scores of a mixture that is served by a discriminant, at the scale of the row."""
        last = self.run(row)

        def make(part: Path, result: Result) -> None:
            out = self.merge_tasks(row, last.get("scale"), part, self.suite.tasks)
            for way in DISCRIMINANT:
                model = self.scorer.load(out, row.projectors, way)
                result[way] = self.scorer.scores(model, "test", self.suite.tasks)
                self.say(f"seed {self.seed} {row.name}, {way}: {100 * final([result[way]]):.1f}")
            shutil.rmtree(out)

        return cached(self.place(f"{row.name}-discriminant"), self._served_config(row, last), make)

    def _served_config(self, row: ContinualRow, last: Result) -> Result:
        ways = {way: dict(settings) for way, settings in DISCRIMINANT.items()}
        return self.config(row.facts() | {"served": ways, "scale": last.get("scale")})

    def follow_served(self, row: ContinualRow) -> Result:
        """Return way -> scores after each task, of the merges that `follow` looks at, by a discriminant."""
        last, served = self.run(row), self.serve(row)

        def make(part: Path, result: Result) -> None:
            first = self._first_step()
            result |= {way: [first] for way in DISCRIMINANT}
            for count in range(2, len(self.order)):
                out = self.merge_tasks(row, last.get("scale"), part, self.order[:count])
                for way in DISCRIMINANT:
                    model = self.scorer.load(out, row.projectors, way)
                    result[way].append(self.scorer.scores(model, "test", self.order[:count]))
            shutil.rmtree(part / "merged", ignore_errors=True)
            for way in DISCRIMINANT:
                result[way].append(served[way])
                lost = forgetting(result[way]) or 0.0
                self.say(f"seed {self.seed} {row.name}, {way}: forgetting {100 * lost:.1f}")

        config = self._served_config(row, last) | {"order": list(self.order)}
        return cached(self.place(f"{row.name}-discriminant-steps"), config, make)

    def follow(self, row: ContinualRow) -> Result:
        """Return the scores after each task, of merges of the tasks so far at the scale of all of them."""
        last = self.run(row)

        def make(part: Path, result: Result) -> None:
            steps = [self._first_step()]
            for count in range(2, len(self.order)):
                out = self.merge_tasks(row, last.get("scale"), part, self.order[:count])
                model = self.scorer.load(out, row.projectors)
                steps.append(self.scorer.scores(model, "test", self.order[:count]))
            shutil.rmtree(part / "merged", ignore_errors=True)
            result["steps"] = [*steps, last["test"]]
            lost = forgetting(result["steps"]) or 0.0
            self.say(f"seed {self.seed} {row.name}: forgetting {100 * lost:.1f}")

        facts = row.facts() | {"order": list(self.order), "scale": last.get("scale")}
        return cached(self.place(f"{row.name}-steps"), self.config(facts), make)

    def _first_step(self) -> Scores:
        """Return the score of the first task's own model, with which every growth begins."""
        first = self.scorer.adapted(self.adapters[self.order[0]])
        return self.scorer.scores(first, "test", self.order[:1])

    def _near(self, row: ContinualRow) -> float | None:
        """Return where the search for a scale begins: at the first seed's, or where the method usually is."""
        first = store.read(self.place(row.name, 0)) if self.seed else None
        start = first.get("scale") if first else START.get(row.merge.name)
        return start if start in self.grid(row.merge) else None
