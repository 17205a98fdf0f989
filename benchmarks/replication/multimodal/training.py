"""Decoupled training of a multimodal model (DAMC): projector, language LoRA and modality LoRA.

The encoder is frozen and runs once over each input. Any model of the form encoder → projector → language
model will do that has a `multi_modal_projector`, such as `LlavaForConditionalGeneration` or
`Qwen2AudioForConditionalGeneration`. What comes out is a folder of the same class with its processor, and in
it two adapters as PEFT saves them, `language/` and `image/` or whatever the modality is called.

`python -m benchmarks.replication.multimodal.own` does it for rows of one's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from benchmarks.console import Say, silent
from benchmarks.replication.loop import batches, linear, minimise, paced, tenths
from benchmarks.replication.multimodal.align import align
from benchmarks.replication.multimodal.decoupled import Decoupled, DecoupledTraining
from benchmarks.replication.multimodal.reader import EncodedRow, ModalityReader, PromptRow

__all__ = ["train"]


def train(
    models: Mapping[str, Path],
    rows: Sequence[PromptRow],
    folder: Path,
    training: DecoupledTraining,
    seed: int,
    say: Say = silent,
) -> list[float]:
    """Train on the rows, write to `folder`, and return the mean loss of every tenth of the steps.

    `models` are modality -> folder; several of them share one language model and its LoRA. Each step takes
    a batch of rows, in a random order that every pass draws anew.
    """
    torch.manual_seed(seed)
    decoupled = Decoupled([ModalityReader(path, name) for name, path in models.items()], training)
    encoded = _encode(decoupled, rows)
    say(f"{len(encoded)} rows encoded")
    draw = torch.Generator().manual_seed(seed)
    for name, reader in decoupled.readers.items():
        mine = [row for row in encoded if row.modality == name]
        loss = align(
            reader.projector,
            decoupled.language.get_input_embeddings().weight,
            mine,
            training.alignment,
            draw,
        )
        say(f"{name}: projector aligned to words, loss {loss:.3f}")
    losses = _fit(decoupled, encoded, training, draw, say)
    decoupled.save(folder)
    return losses


def _encode(decoupled: Decoupled, rows: Sequence[PromptRow]) -> list[EncodedRow]:
    of = {
        name: iter(reader.encode([row for row in rows if row.modality == name]))
        for name, reader in decoupled.readers.items()
    }
    return [next(of[row.modality]) for row in rows]


def _fit(
    decoupled: Decoupled,
    rows: Sequence[EncodedRow],
    training: DecoupledTraining,
    draw: torch.Generator,
    say: Say,
) -> list[float]:
    projecting = [p for reader in decoupled.readers.values() for p in reader.projector.parameters()]
    for weight in projecting:
        weight.requires_grad_(True)
    adapting = [p for name, p in decoupled.adapted.named_parameters() if "lora_" in name and p.requires_grad]
    optimizer = torch.optim.AdamW(
        [{"params": projecting, "lr": training.projector_rate}, {"params": adapting, "lr": training.rate}],
        weight_decay=0.0,
    )
    schedule = paced(optimizer, linear(training.steps, training.warmup))
    first = next(iter(decoupled.readers.values()))
    end = first.processor.tokenizer.eos_token_id
    drawn = batches(len(rows), min(training.batch, len(rows)), draw)

    def after(step: int, loss: torch.Tensor) -> None:
        if (step + 1) % 10 == 0:
            say(f"{step + 1} of {training.steps} steps, loss {loss.item():.3f}")

    def loss_of(_: int) -> torch.Tensor:
        return decoupled.loss([rows[i] for i in next(drawn)], end)

    weights = [*projecting, *adapting]
    steps = range(training.steps)
    return tenths(minimise(loss_of, weights, optimizer, schedule, steps, training.clip, after))
