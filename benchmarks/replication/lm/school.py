"""Makes the base of the decoder suites: a small Llama of transformers, taught from text in two phases."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from benchmarks.replication import cache as store
from benchmarks.replication.lm import lessons
from benchmarks.replication.lm.words import DIGITS, NUMBERS, VOCABULARY, ids

__all__ = ["PASS", "School", "examine", "load", "teach", "tokenizer"]

PASS = 0.95
"""Of every skill, before any specialist is trained."""


@dataclass(frozen=True)
class School:
    """Size of the LM and how long it is taught.

    `std` is of all weights at the start. With the 0.02 that transformers takes, attention has hardly a
    slope at this width, and what a slot holds is not found in thousands of steps; with 0.08 in 200.
    """

    steps: int = 2000
    soft_steps: int = 400
    width: int = 128
    layers: int = 3
    heads: int = 4
    inner: int = 256
    std: float = 0.08
    theta: float = 1000.0
    rate: float = 2e-3
    soft_rate: float = 1e-3
    batch: int = 64

    def config(self) -> dict[str, Any]:
        """Return all numbers, for a marker or a report."""
        return asdict(self)


def teach(
    school: School, folder: Path, say: Callable[[str], None] = lambda _: None, least: float = PASS
) -> dict[str, Any]:
    """Write the LM and its tokenizer to `folder`, unless they are there; return the marker.

    The first phase, hard text, lies beside it when finished, so that an interruption costs one phase at
    most. Raise `SystemExit` where a skill is below `least`.
    """
    text = folder.with_name(f"{folder.name}-text")
    model = None
    for place, steps, rate, mix in (
        (text, school.steps, school.rate, _hard),
        (folder, school.soft_steps, school.soft_rate, _blurred),
    ):
        config = {"school": school.config(), "phase": mix.__name__}
        if store.done(place, config) is None:
            model = model or (_new(school) if mix is _hard else load(text))
            with store.write_whole(place, config) as (part, found):
                started = time.perf_counter()
                found["losses"] = _learn(model, steps, rate, school.batch, mix, say)
                found["seconds"] = round(time.perf_counter() - started, 1)
                found["skills"] = examine(model)
                model.save_pretrained(part)
                tokenizer().save_pretrained(part)
            say(f"LM, {mix.__name__[1:]} text: {found['seconds']:.0f} s, loss {found['losses'][-1]:.3f}")
        elif mix is _hard:
            model = load(text)
    marker = store.read(folder)
    assert marker is not None
    if weak := {skill: f"{100 * got:.1f} %" for skill, got in marker["skills"].items() if got < least}:
        raise SystemExit(
            f"the LM does not know its text well enough: {weak} — {100 * least:.0f} % are needed: "
            "raise the steps of School, or remove the folder if it is damaged"
        )
    return marker


def _new(school: School) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=school.width,
        intermediate_size=school.inner,
        num_hidden_layers=school.layers,
        num_attention_heads=school.heads,
        num_key_value_heads=school.heads,
        max_position_embeddings=128,
        rope_parameters={"rope_type": "default", "rope_theta": school.theta},
        initializer_range=school.std,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config)


def load(folder: Path) -> Any:
    """Return the LM of a folder, for use."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def tokenizer() -> Any:
    """Return the tokenizer: one id a word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", bos_token="<s>")


def _hard(draw: np.random.Generator, progress: float) -> lessons.Lesson:
    """Return a sequence of the first phase, which begins with facts told again.

    Where all kinds are mixed from the start, it is a matter of luck whether slots are ever found.
    """
    if draw.random() < (0.8 if progress < 0.15 else 0.1):
        return lessons.restated(draw)
    return lessons.described(draw) if draw.random() < 0.2 else lessons.numbers(draw)


def _blurred(draw: np.random.Generator, progress: float) -> lessons.Lesson:
    """Return a sequence of the second phase: half of them with numbers that are only likely."""
    kind = draw.random()
    if kind < 0.5:
        return lessons.soft(draw)
    return lessons.described(draw) if kind > 0.9 else lessons.numbers(draw)


def _learn(
    model: Any,
    steps: int,
    rate: float,
    size: int,
    mix: Callable[[np.random.Generator, float], lessons.Lesson],
    say: Callable[[str], None],
) -> list[float]:
    """Train in place: AdamW, warm-up, linear decay; return the mean loss of every tenth of the steps."""
    draw = np.random.default_rng(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 100, (steps - step) / steps)
    )
    model.train()
    losses = []
    for step in range(steps):
        found = lessons.batch([mix(draw, step / steps) for _ in range(size)])
        value = cross_entropy(*_answers(model, *found))
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(value.detach())
        if (step + 1) % 200 == 0:
            say(f"LM, {mix.__name__[1:]} text: step {step + 1} of {steps}, loss {losses[-1]:.3f}")
    model.eval()
    return [round(part.mean().item(), 4) for part in torch.stack(losses).tensor_split(min(10, steps))]


def _answers(
    model: Any, found: torch.Tensor, labels: torch.Tensor, evidence: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits and right words where an answer is due, shapes [k, words] and [k]."""
    embeds = model.get_input_embeddings()(found)
    if len(evidence):
        digits = model.get_input_embeddings().weight[ids(NUMBERS[:DIGITS])]
        row, place = evidence[:, :2].long().T
        embeds = embeds.index_put((row, place), evidence[:, 2:] @ digits)
    due = labels >= 0
    hidden = model.model(inputs_embeds=embeds).last_hidden_state[due]
    return model.lm_head(hidden), labels[due]


@torch.inference_mode()
def examine(model: Any, count: int = 400) -> dict[str, float]:
    """Return skill -> accuracy in text."""
    found = {}
    for skill in lessons.SKILLS:
        logits, right = _answers(model, *lessons.batch(lessons.exam(skill, count)))
        found[skill] = (logits.argmax(-1) == right).double().mean().item()
    return found
