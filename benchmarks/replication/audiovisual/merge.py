"""Merges the language LoRAs of a seed by every method, tunes each on validation, reads the test once.

Projectors and modality LoRAs are not merged. In the naive way, the one LoRA of each specialist is merged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.console import Say, silent
from benchmarks.replication.audiovisual.encoders import Features
from benchmarks.replication.audiovisual.items import STREAMS
from benchmarks.replication.audiovisual.probes import COUNTED, PROBES, ProbeBatches, groups
from benchmarks.replication.audiovisual.rows import JOINT, NOTHING
from benchmarks.replication.audiovisual.specialists import (
    LANGUAGE,
    FeatureProjector,
    load,
    stream_updates,
)
from benchmarks.replication.bench import Bench, MergeOptions, Scores
from benchmarks.replication.cache import Result, cached, folder_name, trained
from benchmarks.replication.lm import pretrain
from benchmarks.replication.lm.streams import StreamedLM
from benchmarks.replication.lm.updates import Updates, dense, load_adapter
from benchmarks.replication.methods import Merge

__all__ = ["AudioVisualBench"]


class AudioVisualBench(Bench):
    """The specialists of one seed, trained in one way, and their compositions.

    `items` are how many questions of each probe a part has.
    """

    def __init__(
        self,
        lm: Path,
        features: Mapping[str, Mapping[str, Features]],
        seed_folder: Path,
        way: str,
        items: Mapping[str, int],
        options: MergeOptions,
        say: Say = silent,
    ) -> None:
        self.folders = [seed_folder / way / slot for slot in STREAMS]
        super().__init__(lm, [folder / LANGUAGE for folder in self.folders], "lora", options, say)
        self.features, self.way, self.items = features, way, items
        self.joint, self.results = seed_folder / way / JOINT, seed_folder / f"{way}-results"
        self.seed = seed_folder.name
        configs = trained([*self.folders, self.joint], f"{way} in {self.seed}")
        self.facts = {"trained": configs, "items": [items["validation"], items["test"]]}
        self.model = StreamedLM(pretrain.load(lm), {})
        self.batches = {part: ProbeBatches(features, part, count) for part, count in items.items()}
        self.projectors: dict[str, FeatureProjector] = {}
        self.modality: dict[str, Updates] = {}
        for folder, slot in zip(self.folders, STREAMS, strict=True):
            projectors, modality = load(folder, [slot], way)
            self.projectors |= projectors
            self.modality |= modality

    def _scores(
        self, language: Updates, part: str, names: Sequence[str] | None = None, only: str = ""
    ) -> Scores:
        """Return the scores of the specialists' composition; with `only` it reads one modality alone."""
        self.model.projectors = self.projectors
        self.model.updates = stream_updates(self.way, language, self.modality)
        batches = self.batches[part]
        if only:
            batches = ProbeBatches(self.features, part, self.items[part], [only])
        return batches.scores(self.model, names)

    def ceiling(self, name: str) -> Result:
        """Return the scores of a row that is no merge."""

        def make(_: Path, result: Result) -> None:
            for part in self.batches:
                result[part] = self._ceiling(name, part)

        return cached(self.results / folder_name(name), self.config({"ceiling": name}), make)

    def _ceiling(self, name: str, part: str) -> Scores:
        if name == NOTHING:
            return self._scores({}, part)
        if name == JOINT:
            return self._joint(part)
        scores: Scores = {}
        for folder, slot in zip(self.models, STREAMS, strict=True):
            language = load_adapter(folder)
            if name == f"{slot}'s LoRA":
                return self._scores(language, part)
            if name == f"{slot} alone":
                return self._scores(language, part, only=slot)
            own = [p.name for p in PROBES if p.slots == (slot,) and p.group in ("own", "new", "degraded")]
            scores |= self._scores(language, part, names=own)
        return scores  # individual

    def _joint(self, part: str) -> Scores:
        self.model.projectors, modality = load(self.joint, list(STREAMS), self.way)
        self.model.updates = stream_updates(self.way, load_adapter(self.joint / LANGUAGE), modality)
        return self.batches[part].scores(self.model)

    def run(self, row: Merge) -> Result:
        """Return everything about one method: from the cache, or by tuning and testing it."""

        def tune_and_test(part: Path, result: Result) -> Path:
            def validate(scale: float | None) -> Scores:
                return self._scores(self._language(row, scale, part), "validation", names=COUNTED)

            result |= self.choose(row, validate, groups)
            result["test"] = self._scores(self._language(row, result.get("scale"), part), "test")
            return part / "merged"

        def line(result: Result) -> str:
            means = groups(result["test"])
            shown = ", ".join(f"{name} {100 * means[name]:.1f}" for name in ("mean", "new", "joint"))
            return f"{self.way} {self.seed} {row.name}: {shown}"

        facts = row.facts() | {"grid": list(self.grid(row))}
        return self.measured(self.results / row.name, facts, tune_and_test, line)

    def _language(self, row: Merge, scale: float | None, part: Path) -> Updates:
        """Return the merged language LoRA."""
        return dense(self.merge(row, scale, part), self.model.lm)
