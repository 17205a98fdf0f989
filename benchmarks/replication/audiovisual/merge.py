"""Merges the language LoRAs of a seed by every method, tunes each on validation, reads the test once.

Projectors and modality LoRAs are kept apart. In the naive way, the one LoRA of each specialist is merged.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as Folder
from typing import Any

from benchmarks.replication import cache as store
from benchmarks.replication.audiovisual.encoders import Features
from benchmarks.replication.audiovisual.items import STREAMS
from benchmarks.replication.audiovisual.probes import COUNTED, PROBES, Exam, groups
from benchmarks.replication.audiovisual.specialists import JOINT, LANGUAGE, load, paths
from benchmarks.replication.lm import school
from benchmarks.replication.lm.merging import choose, cost, merge
from benchmarks.replication.lm.streams import Reader
from benchmarks.replication.lm.updates import Updates, adapter, dense
from benchmarks.replication.merge import size
from benchmarks.replication.methods import Merge

__all__ = ["CEILINGS", "EXTRA", "INDIVIDUAL", "NOTHING", "Bench", "Plan", "place"]

NOTHING, INDIVIDUAL = "no language LoRA", "individual"
CEILINGS = (
    NOTHING,
    *(f"{slot} alone" for slot in STREAMS),
    *(f"{slot}'s LoRA" for slot in STREAMS),
    INDIVIDUAL,
    JOINT,
)
"""Rows that are not merges.

*Alone* is a specialist as it is: it sees its own modality only. Its *LoRA* for all text is the composition
with all projectors and modality LoRAs, without a merge. *Individual* is each specialist on its own questions.
"""


EXTRA = tuple(
    Merge(f"ssam_{part}", "scale", shared={"rank": part}, method="ssam", kinds=("lora",), form="adapter")
    for part in (12, 24, 48)
)
"""Besides the rows of every suite: SSAM at 1/4, 1/2 and all of the ranks' sum."""


@dataclass(frozen=True)
class Plan:
    """`validation` and `test` are items of each probe; with `costs`, merges are timed as processes, too."""

    grid: tuple[float, ...]
    validation: int = 50
    test: int = 300
    costs: bool = True
    threads: int = 1


class Bench:
    """The specialists of one seed, trained in one way, and what is known about them."""

    def __init__(
        self,
        lm: Folder,
        features: Mapping[str, Mapping[str, Features]],
        seed_folder: Folder,
        way: str,
        plan: Plan,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.lm, self.features, self.way, self.plan, self.say = lm, features, way, plan, say
        self.models = [seed_folder / way / slot for slot in STREAMS]
        self.joint, self.results = seed_folder / way / JOINT, seed_folder / f"{way}-results"
        markers = [store.read(folder) for folder in (*self.models, self.joint)]
        if not all(markers):
            raise SystemExit(f"not trained yet: {way} in {seed_folder.name} — run `train` first")
        self.trained = [marker["config"] for marker in markers if marker]
        self.reader = Reader(school.load(lm), {})
        self.exams = {part: Exam(features, part, getattr(plan, part)) for part in ("validation", "test")}
        self.apart: tuple[dict[str, Any], dict[str, Updates]] = {}, {}
        for folder, slot in zip(self.models, STREAMS, strict=True):
            for all_, one in zip(self.apart, load(folder, [slot], way), strict=True):
                all_.update(one)

    def _scores(
        self,
        language: Updates,
        part: str,
        joint: bool = False,
        names: Sequence[str] | None = None,
        sees: str = "",
    ) -> dict[str, float]:
        projectors, modality = load(self.joint, list(STREAMS), self.way) if joint else self.apart
        self.reader.projectors = projectors
        self.reader.paths = paths(self.way, language, modality)
        exam = self.exams[part]
        if sees:
            exam = Exam(self.features, part, getattr(self.plan, part), [sees])
        return exam.scores(self.reader, names)

    def _config(self, row: Mapping[str, Any]) -> dict[str, Any]:
        return {"row": row, "trained": self.trained, "items": [self.plan.validation, self.plan.test]}

    def ceiling(self, name: str) -> dict[str, Any]:
        """Return the scores of a row that is no merge."""
        folder = self.results / place(name)
        config = self._config({"ceiling": name})
        if (found := store.done(folder, config)) is None:
            with store.write_whole(folder, config) as (_, result):
                for part in self.exams:
                    result[part] = self._ceiling(name, part)
            found = store.read(folder)
        assert found is not None
        return found

    def _ceiling(self, name: str, part: str) -> dict[str, float]:
        if name == NOTHING:
            return self._scores({}, part)
        if name == JOINT:
            return self._scores(adapter(self.joint / LANGUAGE), part, joint=True)
        found = {}
        for folder, slot in zip(self.models, STREAMS, strict=True):
            language = adapter(folder / LANGUAGE)
            if name == f"{slot}'s LoRA":
                return self._scores(language, part)
            if name == f"{slot} alone":
                return self._scores(language, part, sees=slot)
            own = [p.name for p in PROBES if p.slots == (slot,) and p.group in ("own", "new", "degraded")]
            found |= self._scores(language, part, names=own)
        return found  # individual

    def run(self, row: Merge) -> dict[str, Any]:
        """Return everything about one method: from the cache, or by tuning and testing it."""
        folder = self.results / row.name
        config = self._config(row.facts() | {"grid": list(self.plan.grid) if row.factor else []})
        if (found := store.done(folder, config)) is not None:
            return found
        with store.write_whole(folder, config) as (part, result):
            started = time.perf_counter()

            def scores(scale: float | None) -> dict[str, float]:
                return self._scores(self._language(row, scale, part), "validation", names=COUNTED)

            result |= choose(row, self.plan.grid, scores, groups)
            result["test"] = self._scores(self._language(row, result.get("scale"), part), "test")
            result["bytes"] = size(part / "merged")
            result["seconds_in_all"] = round(time.perf_counter() - started, 2)
            if self.plan.costs:
                result["cost"] = cost(part, part / "merged", self.plan.threads)
            shutil.rmtree(part / "merged")
        seen = groups(result["test"])
        self.say(f"{self.way} {folder.parent.parent.name} {row.name}: " + _brief(seen))
        found = store.read(folder)
        assert found is not None
        return found

    def _language(self, row: Merge, scale: float | None, part: Folder) -> Updates:
        """Return the merged language LoRA."""
        models = [folder / LANGUAGE for folder in self.models]
        return dense(merge(row, self.lm, models, scale, part, self.plan.threads), self.reader.lm)


def place(name: str) -> str:
    """Return the name of a row's folder."""
    return name.replace(" ", "-").replace("'", "")


def _brief(seen: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {100 * seen[name]:.1f}" for name in ("mean", "new", "joint"))
