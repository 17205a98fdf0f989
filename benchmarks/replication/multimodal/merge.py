"""Composes the specialists of a seed by every method, tunes each on validation, reads the test once.

What is scored is what a user has: `submerge.merge` of a recipe, then `submerge.load` and its processor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import submerge
from benchmarks.console import Say, silent
from benchmarks.replication import cache as store
from benchmarks.replication.bench import Bench, MergeOptions, Scores
from benchmarks.replication.cache import Cache, Result, cached, timed, trained
from benchmarks.replication.methods import Merge, write_recipe
from benchmarks.replication.multimodal import abilities, inputs
from benchmarks.replication.multimodal.decoupled import LANGUAGE
from benchmarks.replication.multimodal.inputs import RATE
from benchmarks.replication.multimodal.probes import PROBES, groups
from benchmarks.replication.multimodal.questions import SKILLS
from benchmarks.replication.multimodal.reader import INPUT_NAMES, PromptRow
from benchmarks.replication.multimodal.rows import DECOUPLED, NAIVE, ComposedRow
from benchmarks.replication.multimodal.specialists import right_share, scores_alone
from benchmarks.replication.multimodal.suite import Multimodal

__all__ = ["BASE", "MultimodalBench"]

BASE = "base"
"""Name of the row of the language model, of which only its abilities in text are measured."""
PARTS = ("validation", "test")
AT_ONCE = 16
"""Prompts of one forward pass."""


class MultimodalBench(Bench):
    """The specialists of one seed, trained in one way, and the models that they are composed to."""

    def __init__(
        self,
        suite: Multimodal,
        cache: Cache,
        seed: int,
        data: Path,
        options: MergeOptions,
        say: Say = silent,
        way: str = DECOUPLED,
    ) -> None:
        folders = [suite.trained(cache, seed, name, way) for name in SKILLS]
        super().__init__(suite.lm_folder(cache), folders, "lora", options, say)
        self.suite, self.cache, self.seed, self.way, self.title = suite, cache, seed, way, f"seed {seed}"
        self.counts = {"validation": suite.validation, "test": suite.test}
        self.facts = {"trained": trained(folders, self.title), "items": self.counts}
        self.sets = inputs.read(data)
        self.text = abilities.read(data, suite.abilities)

    def place(self, seed: int, row: str) -> Path:
        """Return the folder of a row's results."""
        return self.cache.result(seed, self.way, store.folder_name(row))

    def base_abilities(self) -> Result:
        """Return what the language model can do in text as it was."""

        def make(_: Path, result: Result) -> None:
            from transformers import AutoModelForCausalLM, AutoTokenizer

            model = AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.float32).eval()
            with timed(result, "seconds_in_all"):
                result["abilities"] = abilities.scores(
                    model, AutoTokenizer.from_pretrained(self.base), self.text
                )

        return self._reference(BASE, make)

    def alone(self, modality: str) -> Result:
        """Return the scores of a specialist as it is, run as PEFT runs it."""

        def make(_: Path, result: Result) -> None:
            folder = self.suite.trained(self.cache, self.seed, modality)
            with timed(result, "seconds_in_all"):
                result |= scores_alone(
                    folder, modality, self.suite.training, self.sets, {"test": self.suite.test}
                )

        return self._reference(f"{modality} alone", make)

    def _reference(self, name: str, make: Callable[[Path, Result], None]) -> Result:
        result = cached(self.place(self.seed, name), self.config({"reference": name}), make)
        self.say(self.line(name, result))
        return result

    def compose(self, row: ComposedRow) -> Result | None:
        """Return the scores of a composition that is no merge; None where it is not trained yet."""
        of = [store.read(self.suite.trained(self.cache, self.seed, row.trained))] if row.trained else []
        if None in of:
            self.say(f"{self.title} {row.name}: not trained yet, and so not scored")
            return None

        def compose_and_test(part: Path, result: Result) -> Path:
            entries = [self._entry(name, name in row.language, row.trained) for name in SKILLS]
            recipe = {"merge_method": "task_arithmetic", "base_model": str(self.base), "models": entries}
            recipe |= {"parameters": {"weight": 1.0, "lambda": 1.0}, "dtype": "float32"}
            out = self.merge_by(write_recipe(recipe, part / "recipe.yaml"))
            self._test(out, result)
            return out

        facts = {"composed": [list(row.language), [marker["config"] for marker in of if marker]]}
        line = lambda result: self.line(row.name, result)  # noqa: E731
        return self.measured(self.place(self.seed, row.name), facts, compose_and_test, line)

    def run(self, row: Merge) -> Result:
        """Return everything about one method: from the cache, or by tuning and testing it."""

        def tune_and_test(part: Path, result: Result) -> Path:
            def validate(scale: float | None) -> Scores:
                return self._scores(self.merge(row, scale, part), "validation")

            result |= self.choose(row, validate, groups, self._first_scale(row))
            out = self.merge(row, result.get("scale"), part)
            self._test(out, result)
            return out

        facts = row.facts() | {"grid": list(self.grid(row))}
        place, line = self.place(self.seed, row.name), lambda result: self.line(row.name, result)
        return self.measured(place, facts, tune_and_test, line)

    def merge(self, row: Merge, scale: float | None, part: Path, tasks: int | None = None) -> Path:
        """Write the recipe to `part`, and compose the specialists by it; return the new folder."""
        recipe = row.recipe(self.base, self.models, scale, self.kind)
        recipe.pop("output", None)  # a composed model is a folder of its own form
        for entry, modality in zip(recipe["models"], SKILLS, strict=True):
            entry |= self._entry(modality)
        if self.way == NAIVE:
            recipe["modality_tokens"] = "merged"
        return self.merge_by(write_recipe(recipe, part / "recipe.yaml"))

    def _entry(self, modality: str, language: bool = True, trained: str = "") -> dict[str, Any]:
        """Return the specialist as an entry of a recipe, with its language LoRA or without it."""
        adapters = self.suite.trained(self.cache, self.seed, trained or modality, self.way)
        entry = {
            "model": str(self.suite.model(self.cache, self.seed, modality, trained, self.way)),
            "modality": modality,
        }
        if self.way == NAIVE:
            return entry | {"lora": str(adapters / LANGUAGE)}
        if language:
            entry["language_lora"] = str(adapters / LANGUAGE)
        return entry | {"modality_lora": str(adapters / modality)}

    def _first_scale(self, row: Merge) -> float:
        """Return where the search for a scale begins: in the middle, or where the first seed's ended."""
        first = store.read(self.place(0, row.name)) if self.seed else None
        grid = self.options.grid
        return float((first or {}).get("scale", grid[len(grid) // 2]))

    def _test(self, folder: Path, result: Result) -> None:
        result["test"] = self._scores(folder, "test")
        model, processor = submerge.load(folder), submerge.load_processor(folder)
        result["abilities"] = abilities.scores(model, processor.tokenizer, self.text)

    def _scores(self, folder: Path, part: str) -> Scores:
        """Return probe -> accuracy of a composed model."""
        model, processor = submerge.load(folder), submerge.load_processor(folder)
        scores = {}
        for probe in PROBES:
            rows = probe.items(self.sets, part, self.counts[part])
            scores[probe.name] = right_share(_first_tokens(model, processor, rows), rows, processor.tokenizer)
        return scores

    def line(self, name: str, result: Mapping[str, Any]) -> str:
        """Return what is said of a finished row."""
        shown = {group: f"{value:.3f}" for group, value in groups(result.get("test", {})).items()}
        shown |= {what: f"{value:.3f}" for what, value in result.get("abilities", {}).items()}
        return f"{self.title} {name}: " + ", ".join(f"{what} {value}" for what, value in shown.items())


@torch.inference_mode()
def _first_tokens(model: Any, processor: Any, rows: Sequence[PromptRow]) -> list[int]:
    """Return the likeliest next token after each prompt, among all."""
    tokens: list[int] = []
    for at in range(0, len(rows), AT_ONCE):
        part = rows[at : at + AT_ONCE]
        given = {
            INPUT_NAMES[modality]: [list(row.inputs[modality]) for row in part]
            for modality in dict.fromkeys(one for row in part for one in row.inputs)
        }
        more: dict[str, Any] = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
        if "audio" in given:
            given["audio"] = [one for each in given["audio"] for one in each]
            more["sampling_rate"] = RATE
        batch = processor(text=[row.prompt for row in part], **given, **more)
        tokens += model(**batch, logits_to_keep=1).logits[:, -1].argmax(-1).tolist()
    return tokens
