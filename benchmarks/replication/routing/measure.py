"""Serves the specialists of a seed in every way, and scores them strictly: a wrong head is a wrong answer."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

import submerge
from benchmarks.replication import cache as store
from benchmarks.replication.cache import Cache
from benchmarks.replication.ceilings import WRONG_SCORE, route_all
from benchmarks.replication.heads import logits, predict
from benchmarks.replication.methods import Merge
from benchmarks.replication.routing.rows import ROWS, Served
from benchmarks.replication.routing.smile import Smile
from benchmarks.replication.scores import Scorer
from benchmarks.replication.splits import Split
from benchmarks.replication.suite import CLASSES, DENSE, Suite
from benchmarks.replication.train import load_heads
from submerge.routing import complete_evidence

__all__ = ["PARTS", "Servers", "folder", "head_evidence"]

PARTS = ("validation", "test")
IN_A_ROW = 32
"""Inputs of a batch where groups of them are told."""


@dataclass(frozen=True)
class _Answers:
    """Features [n, d] of each input, the task whose head answers [n], and how many tasks ran on average."""

    features: torch.Tensor
    task: torch.Tensor
    ran: float = 1.0


class Servers:
    """The specialists of one seed and kind as one model."""

    def __init__(
        self,
        suite: Suite,
        cache: Cache,
        splits: Mapping[str, Split],
        kind: str,
        seed: int,
        threads: int = 1,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.threads = threads
        self.suite, self.cache, self.splits, self.kind, self.seed, self.say = (
            suite,
            cache,
            splits,
            kind,
            seed,
            say,
        )
        self.tasks = list(splits)
        self.models = [cache.specialist(seed, kind, task) for task in splits]
        markers = [store.read(model) for model in self.models]
        if not all(markers):
            raise SystemExit(f"not trained yet ({kind}, seed {seed}): run `train` first")
        self.trained = [marker["config"] for marker in markers if marker]
        heads = load_heads(suite, cache, splits, seed)
        self.scorer = Scorer(suite.domain, splits, heads, cache.base, screen=0)
        self.pairs = [any(row[1] is not None for row in split.train[:1]) for split in splits.values()]
        self._named: dict[str, dict[str, torch.Tensor]] = {}
        self._scores: dict[tuple[str, bool, str, str], torch.Tensor] = {}
        self._said: dict[tuple[str, str], torch.Tensor] = {}

    def everything(self, rows: Sequence[Served]) -> None:
        """Score the rows, unless the cache has them.

        Where all inputs have one form, none is told it. Where a head answers for each place of an input, no
        heads compete for the whole of it.
        """
        dense = any(split.kind == DENSE for split in self.splits.values())
        for row in rows:
            if row.form and len(set(self.pairs)) == 1:
                continue
            if not (dense and row.heads == "max"):
                self.run(row)

    def run(self, row: Served) -> dict[str, Any]:
        """Return the strict scores of a row, the share of inputs that meet their head, and costs."""
        place = folder(self.cache, self.seed, self.kind, row.name)
        config = {"row": row.facts(), "trained": self.trained}
        if (found := store.done(place, config)) is not None:
            return found
        with store.write_whole(place, config) as (_, result):
            started = time.perf_counter()
            answer = self._server(row)
            for part in PARTS:
                scores, right, ran = {}, {}, []
                for task in self.tasks:
                    found_task = answer(part, task)
                    scores[task] = self._strict(row, part, task, found_task)
                    right[task] = (found_task.task == self.tasks.index(task)).double().mean().item()
                    ran.append(found_task.ran)
                result[part], result[f"routed {part}"] = scores, right
                result[f"ran {part}"] = sum(ran) / len(ran)
            result["seconds_in_all"] = round(time.perf_counter() - started, 2)
            if row.by == "mass":
                result["bytes"] = sum(f.stat().st_size for f in self.merged(row).glob("*.safetensors"))
        found = store.read(place)
        assert found is not None
        right = found["routed test"].values()
        self.say(f"{self.kind} seed {self.seed} {row.name}: routed {sum(right) / len(right):.3f}")
        return found

    def merged(self, row: Served) -> Path:
        """Return the folder of the MASS merge of a row, which is made once for all that share it."""
        name = "-".join(["merged", *(["form"] if row.form else []), *(["wide"] if row.wide else [])])
        place = folder(self.cache, self.seed, self.kind, name)
        config = {"trained": self.trained, "form": row.form, "wide": row.wide}
        if store.done(place, config) is None:
            with store.write_whole(place, config) as (part, measured):
                recipe = Merge("mass").recipe(self.cache.base, self.models, None, self.kind)
                if row.wide:
                    recipe["parameters"] = {"rank": self._wide()}
                for entry, task, pair in zip(recipe["models"], self.tasks, self.pairs, strict=True):
                    entry["name"] = task
                    if row.form:
                        entry["parameters"] = {"form": "pair" if pair else "single"}
                started = time.perf_counter()
                settings = submerge.Settings(threads=self.threads, max_memory=16_000_000_000)
                submerge.merge(recipe, part / "model", settings=settings)
                measured["seconds"] = round(time.perf_counter() - started, 2)
        return place / "model"

    def _wide(self) -> list[dict[str, Any]]:
        """Return the rule for ranks: twice the usual in the first two blocks of the encoder."""
        config = json.loads((self.cache.base / "config.json").read_text())
        twice = 2 * config["hidden_size"] // len(self.tasks)
        return [*({"filter": f"layer.{i}.", "value": twice} for i in range(2)), {"value": "auto"}]

    def clean(self) -> None:
        """Remove the merged folders, which are large and made anew in seconds."""
        for place in folder(self.cache, self.seed, self.kind, "").glob("merged*"):
            shutil.rmtree(place, ignore_errors=True)

    # --- answers ----------------------------------------------------------------------------------------

    def _server(self, row: Served) -> Callable[[str, str], _Answers]:
        if row.by == "smile":
            return self._smile(row)
        if row.by == "lda":
            return self._lda(row)
        model = submerge.load(self.merged(row), features=True, **row.settings)
        if row.by == "fixed":
            model.router = None  # the plain checkpoint
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
                parts.append(_Answers(features, self._loudest(features, [self.tasks] * len(which))))
            else:
                out = model(**batch, group=[i // row.group for i in which] if row.group > 1 else None)
                features, chosen = self._features(out, batch, task), out.routing.selected
                lead = self._loudest(features, chosen) if row.heads == "max" else out.routing.lead
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
        key = (repr(sorted(row.settings.items())), row.heard, part, task)
        if key not in self._scores:
            items, parts, order = self.scorer.items[part][task], [], []
            said = self._heard(part, task) if row.heard else None
            for which in items.batches():
                prior = None if said is None else said[which]
                parts.append(model.route(**items.batch(which), prior=prior).scores)
                order += which
            self._scores[key] = torch.cat(parts)[torch.tensor(order).argsort()]
        scores = self._scores[key]
        if row.group > 1:
            scores = torch.cat([some.mean(0).expand_as(some) for some in scores.split(row.group)])
        if row.form:
            fits = torch.tensor([pair == self.pairs[self.tasks.index(task)] for pair in self.pairs])
            scores = scores.masked_fill(~fits, -torch.inf)
        return _Answers(torch.zeros(len(scores), 0), scores.argmax(1))

    @cached_property
    def _base(self) -> Any:
        return self.suite.domain.load(self.cache.base, self.cache.base)

    def _heard(self, part: str, task: str) -> torch.Tensor:
        """Return what all heads say of the base's features [n, T], as `head_evidence` has it.

        The served models come without heads, for the bench's are no layers of transformers. What they say
        goes in by `prior=`, which chooses as `head_evidence` does (tests/benchmarks/test_served_heads.py).
        """
        if (part, task) not in self._said:
            domain, items, base = self.suite.domain, self.scorer.items[part][task], self._base
            heads = [self.scorer.heads[t] for t in self.tasks]
            classes = [head.kind == CLASSES for head in heads]
            found = torch.zeros(len(items), len(heads), dtype=torch.float64)
            for which in items.batches():
                batch = items.batch(which)
                features = domain.pooled(base(**batch).last_hidden_state, batch, CLASSES)
                found[which] = head_evidence([logits(head, features) for head in heads], classes)
            self._said[part, task] = found
        return self._said[part, task]

    def _lda(self, row: Served) -> Callable[[str, str], _Answers]:
        suite = self.suite.cut(router_shots=row.options["shots"])
        sent = route_all(suite, self.cache, self.splits, self.scorer, self._base)
        return lambda part, task: _Answers(torch.zeros(len(sent[part][task]), 0), sent[part][task])

    def _smile(self, row: Served) -> Callable[[str, str], _Answers]:
        domain = self.suite.domain
        tuned = [domain.load(model, self.cache.base) for model in self.models]
        smile = Smile(domain.load(self.cache.base, self.cache.base), tuned, **row.options)

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
        return self.suite.domain.pooled(out.last_hidden_state, batch, self.splits[task].kind)

    def _loudest(self, features: torch.Tensor, chosen: Any) -> torch.Tensor:
        """Return for each input the task among those chosen whose head has the largest logit."""
        found = torch.stack([logits(self.scorer.heads[t], features).amax(-1) for t in self.tasks], 1)
        allowed = torch.tensor([[t in some for t in self.tasks] for some in chosen])
        return found.masked_fill(~allowed, -torch.inf).argmax(1)

    # --- scores -----------------------------------------------------------------------------------------

    def _strict(self, row: Served, part: str, task: str, answers: _Answers) -> float:
        head = self.scorer.heads[task]
        told = self._told(part)[task] if row.single else predict(head, answers.features)
        right = answers.task == self.tasks.index(task)
        wrong = -1 if self.splits[task].kind == CLASSES else WRONG_SCORE
        right = right.view(-1, *[1] * (told.ndim - 1))
        return self.scorer.of(torch.where(right, told, torch.full_like(told, wrong)), part, task)

    def _told(self, part: str) -> dict[str, torch.Tensor]:
        """Return the answers where the task is named, which every row that runs one task has in common."""
        if part not in self._named:
            model = submerge.load(self.merged(ROWS[0]), features=True)
            domain = self.suite.domain
            found = {}
            for task in self.tasks:
                features = domain.features(model, self.scorer.items[part][task], task=task)
                found[task] = predict(self.scorer.heads[task], features)
            self._named[part] = found
        return self._named[part]


def head_evidence(outputs: Sequence[torch.Tensor], classes: Sequence[bool]) -> torch.Tensor:
    """Return what heads say of inputs [n, T], in nats, from their outputs [n, C_t] on the base's features."""
    each = torch.stack([one.double().logsumexp(-1) for one in outputs], 1)
    return complete_evidence(each, torch.tensor(classes))


def folder(cache: Cache, seed: int, kind: str, name: str) -> Path:
    """Return the folder of a row's scores."""
    return cache.root / f"seed{seed}" / f"{kind}-routing" / name
