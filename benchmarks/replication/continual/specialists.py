"""Trains a LoRA and a projector of the multimodal base: on one task, on all, or on one after another.

What comes out is a folder as PEFT saves it: a LoRA of the language model, and the projector's new values
(`modules_to_save`). The vision encoder is frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.console import Say, silent
from benchmarks.replication import cache as store
from benchmarks.replication.cache import Result, cached, timed
from benchmarks.replication.continual.elastic import Elastic
from benchmarks.replication.continual.questions import ReadQuestion, read_questions, training_inputs
from benchmarks.replication.loop import batches, linear, minimise, paced, tenths
from benchmarks.replication.multimodal.align import ProjectorAlignment, align
from benchmarks.replication.multimodal.reader import ModalityReader, PromptRow
from benchmarks.replication.rows import seed_of

__all__ = ["PROJECTOR", "TaskTraining", "train", "write_base"]

PROJECTOR = "multi_modal_projector"


@dataclass(frozen=True)
class TaskTraining:
    """How a task is learnt: the projector is aligned to its captions, then it and a LoRA are trained."""

    steps: int = 120
    batch: int = 8
    rank: int = 16
    alpha: int = 32
    rate: float = 1e-3
    projector_rate: float = 3e-4
    warmup: int = 10
    clip: float = 1.0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    alignment: ProjectorAlignment = field(default_factory=lambda: ProjectorAlignment(steps=200, rate=1e-3))

    def config(self) -> dict[str, Any]:
        """Return all numbers, for a marker or a report."""
        return asdict(self)


def write_base(
    union: Path, rows: Sequence[PromptRow], folder: Path, alignment: ProjectorAlignment, say: Say = silent
) -> Path:
    """Write the base of all tasks, unless it is there: its projector is aligned to words of other images."""
    config = {"union": (store.read(union) or {})["config"], "alignment": alignment.config()}

    def make(part: Path, measured: Result) -> None:
        reader = ModalityReader(union, "image")
        with timed(measured):
            measured["loss"] = _align(reader, rows, alignment, seed_of("continual", "base"))
        say(f"base: projector aligned to words, loss {measured['loss']:.3f}")
        reader.model.save_pretrained(part)
        reader.processor.save_pretrained(part)

    cached(folder, config, make)
    return folder


def train(
    base: Path,
    tasks: Mapping[str, Sequence[PromptRow]],
    folder: Path,
    training: TaskTraining,
    seed: int,
    start: Path | None = None,
    elastic: Elastic | None = None,
    last: Sequence[PromptRow] = (),
    say: Say = silent,
) -> Result:
    """Train on these tasks, unless the folder has it; return the marker.

    With `start`, the adapter of a folder goes on, as it is without any alignment; else LoRA and projector
    begin at the base. Several tasks take as many steps as they do each by itself. With `elastic`, changes
    of what mattered for the tasks of `start` are penalised (EWC); `last` are questions of the last of them.
    """
    config = {"tasks": list(tasks), "seed": seed, "training": training.config()}
    config["base"] = (store.read(base) or {})["config"]
    if elastic:
        config["elastic"] = elastic.config()
    if start:
        config["start"] = (store.read(start) or {})["config"]

    def make(part: Path, measured: Result) -> None:
        draw = seed_of("continual", seed, *tasks)
        rows = [row for one in tasks.values() for row in one]
        reader = ModalityReader(base, "image")
        with timed(measured):
            if not start:
                measured["aligned"] = _align(reader, rows, training.alignment, draw)
            adapted = _adapted(reader, training, start, draw)
            model = TrainedAdapter(adapted, reader.processor, rows)
            penalty = None
            if elastic and start:
                before = TrainedAdapter(adapted, reader.processor, last[: elastic.samples])
                penalty = elastic.penalty(model.named, before.losses(), start, part)
            measured["losses"] = model.fit(training, len(tasks) * training.steps, draw, penalty, say)
        adapted.save_pretrained(part)

    return cached(folder, config, make)


def _align(
    reader: ModalityReader, rows: Sequence[PromptRow], alignment: ProjectorAlignment, seed: int
) -> float:
    draw, table = torch.Generator().manual_seed(seed), reader.model.get_input_embeddings().weight
    loss = align(reader.projector, table, reader.encode(rows), alignment, draw)
    reader.projector.requires_grad_(False)
    return loss


def _adapted(reader: ModalityReader, training: TaskTraining, start: Path | None, seed: int) -> Any:
    from peft import LoraConfig, PeftModel, get_peft_model

    if start:
        return PeftModel.from_pretrained(reader.model, start, is_trainable=True)
    torch.manual_seed(seed)
    lora = LoraConfig(
        r=training.rank,
        lora_alpha=training.alpha,
        target_modules=rf".*language_model\..*\.({'|'.join(training.targets)})",
        modules_to_save=[PROJECTOR],
        task_type="CAUSAL_LM",
    )
    return get_peft_model(reader.model, lora)


class TrainedAdapter:
    """A model with an adapter to train, and the questions that it learns."""

    def __init__(self, adapted: Any, processor: Any, rows: Sequence[PromptRow]) -> None:
        self.adapted, self.end = adapted, int(processor.tokenizer.eos_token_id)
        self.questions = read_questions(processor, rows)
        self.named = {name: p for name, p in adapted.named_parameters() if p.requires_grad}

    def loss(self, questions: Sequence[ReadQuestion]) -> torch.Tensor:
        """Return the mean loss of the answers' tokens and of the end; other logits are not computed."""
        inputs, due = training_inputs(questions, self.end)
        logits = self.adapted(**inputs, use_cache=False).logits
        return cross_entropy(logits.flatten(0, 1), due.flatten())

    def losses(self) -> Sequence[Callable[[], torch.Tensor]]:
        """Return the loss of each question, computed when it is called."""
        return [partial(self.loss, [one]) for one in self.questions]

    def fit(
        self,
        training: TaskTraining,
        steps: int,
        seed: int,
        penalty: Callable[[], torch.Tensor] | None,
        say: Say,
    ) -> list[float]:
        """Train in place: AdamW, warm-up, linear decay; return the mean loss of every tenth of the steps."""
        projecting = [p for name, p in self.named.items() if PROJECTOR in name]
        adapting = [p for name, p in self.named.items() if PROJECTOR not in name]
        optimizer = torch.optim.AdamW(
            [
                {"params": projecting, "lr": training.projector_rate},
                {"params": adapting, "lr": training.rate},
            ],
            weight_decay=0.0,
        )
        schedule = paced(optimizer, linear(steps, training.warmup))
        size = min(training.batch, len(self.questions))
        drawn = batches(len(self.questions), size, torch.Generator().manual_seed(seed))

        def loss_of(_: int) -> torch.Tensor:
            loss = self.loss([self.questions[i] for i in next(drawn)])
            return loss + penalty() if penalty else loss

        def after(step: int, loss: torch.Tensor) -> None:
            if (step + 1) % 25 == 0:
                say(f"{step + 1} of {steps} steps, loss {loss.item():.3f}")

        weights: list[nn.Parameter] = [*projecting, *adapting]
        return tenths(minimise(loss_of, weights, optimizer, schedule, range(steps), training.clip, after))
