"""Trains a LoRA of the chat LM on one skill."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from benchmarks.console import Say, silent
from benchmarks.replication.cache import Result, cached, timed
from benchmarks.replication.loop import linear, minimise, paced, tenths
from benchmarks.replication.rows import seed_of
from benchmarks.replication.skills.chat import Chat, Conversation, TrainingBatch, load
from benchmarks.replication.skills.suite import Skills
from benchmarks.replication.skills.tasks import Skill
from benchmarks.replication.suite import Training

__all__ = ["conversations", "fit", "train", "untrained"]

SORTED_TOGETHER = 16
"""Batches out of which conversations of like length are put together."""
EVERY = 60.0
"""Seconds between two lines of a training."""


def train(
    base: Path,
    conversations: Callable[[], Sequence[Conversation]],
    folder: Path,
    training: Training,
    targets: Sequence[str],
    facts: Mapping[str, Any],
    say: Say = silent,
) -> Result:
    """Write the adapter to `folder`, unless it was made there with these facts; return the marker.

    Of `facts`, "skill" and "seed" decide what is drawn.
    """

    def make(part: Path, measured: Result) -> None:
        draw = seed_of("skills", facts["skill"], facts["seed"])
        adapter = untrained(base, training, targets, draw)
        with timed(measured):
            measured["losses"] = fit(adapter, conversations(), training, draw, say)
        adapter.save_pretrained(part)
        measured["bytes"] = sum(file.stat().st_size for file in part.glob("*.safetensors"))

    config = {**facts, "training": training.config(), "targets": list(targets)}
    return cached(folder, config, make)


def conversations(suite: Skills, base: Path, skill: Skill, data: Path) -> list[Conversation]:
    """Return what adapters of a skill are trained on: its training conversations that are not too long."""
    every = Chat(base).conversations(skill, suite.examples(skill, data)["train"])
    return [one for one in every if len(one) <= suite.longest]


def untrained(base: Path, training: Training, targets: Sequence[str], seed: int) -> Any:
    """Return the LM with a new LoRA, as a `PeftModel`."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    lm = load(base)
    lora = LoraConfig(
        r=training.rank, lora_alpha=training.alpha, target_modules=list(targets), task_type="CAUSAL_LM"
    )
    return get_peft_model(lm, lora)


def fit(
    adapter: Any,
    conversations: Sequence[Conversation],
    training: Training,
    seed: int,
    say: Say = silent,
    after: Callable[[int], None] = lambda step: None,
) -> list[float]:
    """Train in place: AdamW, warm-up, linear decay; return the mean loss of every tenth of the steps.

    After each step `after` gets its number, from 1 on.
    """
    lm = adapter.get_base_model()  # its modules hold the LoRA
    weights = [weight for weight in lm.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=training.rate, weight_decay=training.decay)
    schedule = paced(optimizer, linear(training.steps, training.warmup))
    batches = _batches(conversations, training.batch, torch.Generator().manual_seed(seed))
    last_line = time.perf_counter()

    def loss_of(_: int) -> torch.Tensor:
        return answer_loss(lm, TrainingBatch.of(batches()))

    def progress(step: int, loss: torch.Tensor) -> None:
        nonlocal last_line
        if time.perf_counter() - last_line > EVERY:
            last_line = time.perf_counter()
            say(f"{step + 1} of {training.steps} steps, loss {loss.item():.3f}")
        after(step + 1)

    lm.train()
    losses = minimise(loss_of, weights, optimizer, schedule, range(training.steps), training.clip, progress)
    lm.eval()
    return tenths(losses)


def answer_loss(lm: Any, batch: TrainingBatch) -> torch.Tensor:
    """Return the mean loss of the answers' tokens.

    Only their logits are computed: over a vocabulary of 49,152 they cost as much as ten layers.
    """
    due = batch.labels >= 0
    hidden = lm.model(input_ids=batch.tokens, attention_mask=batch.mask, use_cache=False).last_hidden_state
    return cross_entropy(lm.lm_head(hidden[due]), batch.labels[due])


def _batches(
    conversations: Sequence[Conversation], size: int, draw: torch.Generator
) -> Callable[[], list[Conversation]]:
    """Return a function that draws batches of conversations of like length, in passes over all of them."""
    left: list[list[Conversation]] = []
    together = SORTED_TOGETHER * size

    def batch() -> list[Conversation]:
        if not left:
            order = torch.randperm(len(conversations), generator=draw).tolist()
            for at in range(0, len(order), together):
                alike = sorted((conversations[i] for i in order[at : at + together]), key=len)
                left.extend(alike[i : i + size] for i in range(0, len(alike), size))
            left[:] = [left[i] for i in torch.randperm(len(left), generator=draw).tolist()]
        return left.pop()

    return batch
