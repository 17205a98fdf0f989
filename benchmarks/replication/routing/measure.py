"""Serves the specialists of a seed in every way, and scores them strictly: a wrong head is a wrong answer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

import submerge
from benchmarks.console import Say, silent
from benchmarks.replication.bench import weight_bytes
from benchmarks.replication.cache import Result, cached, timed
from benchmarks.replication.ceilings import route_all
from benchmarks.replication.encoder import Items
from benchmarks.replication.heads import logits, predict
from benchmarks.replication.routing.inputs import InputScores
from benchmarks.replication.routing.rows import ROWS, Served
from benchmarks.replication.routing.smile import Smile
from benchmarks.replication.rows import CLASSES, DENSE
from benchmarks.replication.scores import Scorer
from benchmarks.replication.specialists import Specialists
from submerge.routing import complete_evidence

__all__ = ["PARTS", "Servers", "head_evidence"]

PARTS = ("validation", "test")
INPUTS = 150
"""Items of a task that a router may be calibrated by: the last of training, as heads take the first."""
IN_A_ROW = 32
"""Inputs of a batch where it is known which of them belong together."""


@dataclass(frozen=True)
class _Answers:
    """Features [n, d] of each input, the task whose head answers [n], and how many tasks ran on average."""

    features: torch.Tensor
    task: torch.Tensor
    ran: float = 1.0


class Servers:
    """The specialists of one seed and kind as one model."""

    def __init__(self, specialists: Specialists, threads: int = 1, say: Say = silent) -> None:
        self.specialists, self.threads, self.say = specialists, threads, say
        self.tasks, self.splits, self.heads = specialists.tasks, specialists.splits, specialists.heads
        self.scorer = Scorer(specialists.domain, self.splits, self.heads, specialists.cache.base, screen=0)
        self.pairs = [any(row[1] is not None for row in split.train[:1]) for split in self.splits.values()]
        self._named: dict[str, dict[str, torch.Tensor]] = {}
        self._scores: dict[tuple[str, bool, str, str], torch.Tensor] = {}
        self._evidence: dict[tuple[str, str], torch.Tensor] = {}

    def everything(self, rows: Sequence[Served]) -> None:
        """Score the rows, unless the cache has them.

        Where all inputs have one form, no row is given it. Where a head answers for each place of an input,
        no heads compete for the input as one.
        """
        dense = any(split.kind == DENSE for split in self.splits.values())
        for row in rows:
            if row.form and len(set(self.pairs)) == 1:
                continue
            if not (dense and row.heads == "max"):
                self.run(row)

    def run(self, row: Served) -> Result:
        """Return the strict scores of a row, the share of inputs that meet their head, and costs."""

        def make(_: Path, result: Result) -> None:
            with timed(result, "seconds_in_all"):
                server = self._server(row)
                for part in PARTS:
                    result |= self._part(row, part, server)
            if row.by == "mass":
                result["bytes"] = weight_bytes(self.merged(row))
            right = result["routed test"].values()
            seed = f"{self.specialists.kind} seed {self.specialists.seed}"
            self.say(f"{seed} {row.name}: routed {sum(right) / len(right):.3f}")

        config = {"row": row.facts(), "trained": self.specialists.trained}
        return cached(self._folder(row.name), config, make)

    def _part(self, row: Served, part: str, server: Callable[[str, str], _Answers]) -> Result:
        """Return scores and routes of all tasks on one part of their items."""
        answers = {task: server(part, task) for task in self.tasks}
        return {
            part: {task: self._strict(row, part, task, each) for task, each in answers.items()},
            f"routed {part}": {
                task: (each.task == self.tasks.index(task)).double().mean().item()
                for task, each in answers.items()
            },
            f"ran {part}": sum(each.ran for each in answers.values()) / len(answers),
        }

    def merged(self, row: Served) -> Path:
        """Return the folder of the MASS merge of a row, which is made once for all that share it."""
        name = "-".join(["merged", *(["form"] if row.form else []), *(["wide"] if row.wide else [])])
        place = self._folder(name)

        def make(folder: Path, measured: Result) -> None:
            forms = ["pair" if pair else "single" for pair in self.pairs] if row.form else None
            parameters = {"rank": self._wide()} if row.wide else {}
            with timed(measured):
                self.specialists.merge_mass(folder / "model", self.threads, parameters, forms)

        config = {"trained": self.specialists.trained, "form": row.form, "wide": row.wide}
        cached(place, config, make)
        return place / "model"

    def _folder(self, name: str) -> Path:
        return self.specialists.cache.served(self.specialists.seed, self.specialists.kind, name)

    def _wide(self) -> list[dict[str, Any]]:
        """Return the rule for ranks: twice the usual in the first two blocks of the encoder."""
        config = json.loads((self.specialists.cache.base / "config.json").read_text())
        twice = 2 * config["hidden_size"] // len(self.tasks)
        return [*({"filter": f"layer.{i}.", "value": twice} for i in range(2)), {"value": "auto"}]

    def clean(self) -> None:
        """Remove the merged folders, which are large and made anew in seconds."""
        for place in self._folder("").glob("merged*"):
            shutil.rmtree(place, ignore_errors=True)

    # --- answers ----------------------------------------------------------------------------------------

    def _server(self, row: Served) -> Callable[[str, str], _Answers]:
        if row.by == "smile":
            return self._smile(row)
        if row.by == "lda":
            return self._lda(row)
        if row.by == "inputs":
            return self._calibrated(row)
        folder = self._together(row) if row.by == "together" else self.merged(row)
        if row.by == "fixed":
            model = self.specialists.load(folder)  # the plain checkpoint
        else:
            model = submerge.load(folder, features=True, **row.settings)
        return lambda part, task: self._mass(model, row, part, task)

    @torch.inference_mode()
    def _mass(self, model: Any, row: Served, part: str, task: str) -> _Answers:
        """Answer a part of one task's inputs."""
        if row.single:
            return self._routed(model, row, part, task)
        items, parts, order = self.scorer.items[part][task], [], []
        consecutive = [list(range(i, min(i + IN_A_ROW, len(items)))) for i in range(0, len(items), IN_A_ROW)]
        for which in consecutive if row.group > 1 else items.batches():
            batch = items.batch(which)
            if row.by == "fixed":
                features = self._features(model(**batch), batch, task)
                parts.append(_Answers(features, self._largest_logit(features, [self.tasks] * len(which))))
            else:
                out = model(**batch, group=[i // row.group for i in which] if row.group > 1 else None)
                features, chosen = self._features(out, batch, task), out.routing.selected
                lead = self._largest_logit(features, chosen) if row.heads == "max" else out.routing.lead
                parts.append(_Answers(features, lead, sum(map(len, chosen)) / len(chosen)))
            order += which
        back = torch.tensor(order).argsort()
        ran = sum(one.ran * len(one.task) for one in parts) / len(order)
        return _Answers(
            torch.cat([one.features for one in parts])[back],
            torch.cat([one.task for one in parts])[back],
            ran,
        )

    def _routed(self, model: Any, row: Served, part: str, task: str) -> _Answers:
        """Return the choice alone; rows with one router share its scores, whatever the caller knows."""
        shared = {**row.settings, **row.options}
        key = (repr(sorted(shared.items())), row.head_evidence, part, task)
        if key not in self._scores:
            items = self._items(part, task)
            evidence = self._head_evidence(part, task) if row.head_evidence else None

            def scores_of(which: list[int]) -> torch.Tensor:
                prior = None if evidence is None else evidence[which]
                scores: torch.Tensor = model.route(**items.batch(which), prior=prior).scores
                return scores

            self._scores[key] = items.in_batches(scores_of)
        return self._choice(self._scores[key], row, task)

    def _choice(self, scores: torch.Tensor, row: Served, task: str) -> _Answers:
        """Return the choice by scores [n, T] of one task's inputs, and by what the caller knows."""
        if row.group > 1:
            scores = torch.cat([each.mean(0).expand_as(each) for each in scores.split(row.group)])
        if row.form:
            fits = torch.tensor([pair == self.pairs[self.tasks.index(task)] for pair in self.pairs])
            scores = scores.masked_fill(~fits, -torch.inf)
        return _Answers(torch.zeros(len(scores), 0), scores.argmax(1))

    def _calibrated(self, row: Served) -> Callable[[str, str], _Answers]:
        count, shrinkage = row.options["inputs"], row.options.get("shrinkage")
        calibration = self._input_scores.calibration(self.tasks, "inputs", count, shrinkage)

        def answer(part: str, task: str) -> _Answers:
            return self._choice(self._input_scores.scores(calibration, part, task), row, task)

        return answer

    def _together(self, row: Served) -> Path:
        """Return a copy of the merge that was calibrated by inputs of all tasks, not told whose they are."""
        copy = self._folder(f"merged-{row.name}")
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.merged(row), copy)
        batches = []
        for task in self.tasks:
            items = self._items("inputs", task)
            batches.append(items.batch(range(len(items))[-row.options["inputs"] :]))
        submerge.calibrate_router(copy, batches)
        return copy

    @cached_property
    def _input_scores(self) -> InputScores:
        row = next(row for row in ROWS if row.name == "default")
        model = submerge.load(self.merged(row), features=True, **row.settings)
        return InputScores(model, self._items, self._head_evidence)

    def _items(self, part: str, task: str) -> Items:
        if part != "inputs":
            return self.scorer.items[part][task]
        split, specialists = self.splits[task], self.specialists
        return specialists.domain.items(split.train[-INPUTS:], specialists.cache.base, split.kind)

    @cached_property
    def _base(self) -> Any:
        return self.specialists.base()

    def _head_evidence(self, part: str, task: str) -> torch.Tensor:
        """Return the evidence of all heads [n, T] on the base's features, as `head_evidence` has it.

        The served models come without heads, for the bench's are no layers of transformers. Their evidence
        goes in by `prior=`, which chooses as `head_evidence` does (tests/benchmarks/test_served_heads.py).
        """
        if (part, task) not in self._evidence:
            domain, items = self.specialists.domain, self._items(part, task)
            heads = [self.heads[t] for t in self.tasks]
            classes = [head.kind == CLASSES for head in heads]

            def evidence_of(which: list[int]) -> torch.Tensor:
                batch = items.batch(which)
                features = domain.pooled(self._base(**batch).last_hidden_state, batch, CLASSES)
                return head_evidence([logits(head, features) for head in heads], classes)

            self._evidence[part, task] = items.in_batches(evidence_of)
        return self._evidence[part, task]

    def _lda(self, row: Served) -> Callable[[str, str], _Answers]:
        sent = route_all(self.specialists, self.scorer, self._base, row.options["shots"])
        return lambda part, task: _Answers(torch.zeros(len(sent[part][task]), 0), sent[part][task])

    def _smile(self, row: Served) -> Callable[[str, str], _Answers]:
        domain = self.specialists.domain
        tuned = [self.specialists.load(model) for model in self.specialists.models]
        smile = Smile(self.specialists.base(), tuned, **row.options)

        def answer(part: str, task: str) -> _Answers:
            items, features, voted, order = self.scorer.items[part][task], [], [], []
            for which in items.batches():
                batch = items.batch(which)
                hidden, votes = smile(batch)
                features.append(domain.pooled(hidden, batch, self.splits[task].kind))
                voted.append(votes)
                order += which
            back = torch.tensor(order).argsort()
            return _Answers(torch.cat(features)[back], torch.cat(voted)[back])

        return answer

    def _features(self, out: Any, batch: dict[str, torch.Tensor], task: str) -> torch.Tensor:
        return self.specialists.domain.pooled(out.last_hidden_state, batch, self.splits[task].kind)

    def _largest_logit(self, features: torch.Tensor, chosen: Any) -> torch.Tensor:
        """Return for each input the task among those chosen whose head has the largest logit."""
        largest = torch.stack([logits(self.heads[t], features).amax(-1) for t in self.tasks], 1)
        allowed = torch.tensor([[t in tasks for t in self.tasks] for tasks in chosen])
        return largest.masked_fill(~allowed, -torch.inf).argmax(1)

    # --- scores -----------------------------------------------------------------------------------------

    def _strict(self, row: Served, part: str, task: str, answers: _Answers) -> float:
        if row.single:
            predicted = self._named_answers(part)[task]
        else:
            predicted = predict(self.heads[task], answers.features)
        return self.scorer.strict(predicted, answers.task == self.tasks.index(task), part, task)

    def _named_answers(self, part: str) -> dict[str, torch.Tensor]:
        """Return the answers where the task is named, which every row that runs one task has in common."""
        if part not in self._named:
            model = submerge.load(self.merged(ROWS[0]), features=True)
            domain = self.specialists.domain
            self._named[part] = {
                task: predict(
                    self.heads[task], domain.features(model, self.scorer.items[part][task], task=task)
                )
                for task in self.tasks
            }
        return self._named[part]


def head_evidence(outputs: Sequence[torch.Tensor], classes: Sequence[bool]) -> torch.Tensor:
    """Return the evidence of heads [n, T], in nats, from their outputs [n, C_t] on the base's features."""
    each = torch.stack([one.double().logsumexp(-1) for one in outputs], 1)
    return complete_evidence(each, torch.tensor(classes))
