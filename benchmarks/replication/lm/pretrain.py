"""Makes the base of the decoder suites: a small Llama of transformers, pretrained on text in two phases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from benchmarks.console import Say, silent
from benchmarks.replication.cache import Result, cached, timed
from benchmarks.replication.lm import corpus
from benchmarks.replication.lm.words import DIGITS, NUMBERS, VOCABULARY, ids
from benchmarks.replication.loop import minimise, paced, tenths

__all__ = ["PASS", "TextPretraining", "load", "pretrain", "skill_accuracy", "tokenizer"]

PASS = 0.95
"""Of every skill, before any specialist is trained."""


@dataclass(frozen=True)
class TextPretraining:
    """Size of the LM and how long it is trained.

    `std` is of all weights at the start. With the 0.02 that transformers takes, attention has hardly a
    slope at this width, and the value of a slot is not found in thousands of steps; with 0.08 in 200.
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


@dataclass(frozen=True)
class _Phase:
    """A name, how long and fast it is, and what a passage is drawn from."""

    name: str
    steps: int
    rate: float
    draw: Callable[[np.random.Generator, float], corpus.Passage]


def pretrain(how: TextPretraining, folder: Path, say: Say = silent, least: float = PASS) -> Result:
    """Write the LM and its tokenizer to `folder`, unless they are there; return the marker.

    The first phase, of certain values, lies beside it when finished, so that an interruption costs one phase
    at most. Raise `SystemExit` where a skill is below `least`.
    """
    text = folder.with_name(f"{folder.name}-text")
    certain = _Phase("hard", how.steps, how.rate, _certain)
    uncertain = _Phase("blurred", how.soft_steps, how.soft_rate, _uncertain)
    _phase(certain, how, text, lambda: _new(how), say)
    marker = _phase(uncertain, how, folder, lambda: load(text), say)
    if weak := {skill: f"{100 * got:.1f} %" for skill, got in marker["skills"].items() if got < least}:
        raise SystemExit(
            f"the LM does not know its text well enough: {weak} — {100 * least:.0f} % are needed: "
            "raise the steps of TextPretraining, or remove the folder if it is damaged"
        )
    return marker


def _phase(phase: _Phase, how: TextPretraining, folder: Path, start: Callable[[], Any], say: Say) -> Result:
    """Train the model of `start` in one phase, and write it, unless the folder has it; return the marker."""

    def make(part: Path, measured: Result) -> None:
        model = start()
        with timed(measured):
            measured["losses"] = _fit(model, phase, how.batch, say)
        measured["skills"] = skill_accuracy(model)
        model.save_pretrained(part)
        tokenizer().save_pretrained(part)
        say(f"LM, {phase.name} text: {measured['seconds']:.0f} s, loss {measured['losses'][-1]:.3f}")

    return cached(folder, {"school": how.config(), "phase": f"_{phase.name}"}, make)


def _new(how: TextPretraining) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=how.width,
        intermediate_size=how.inner,
        num_hidden_layers=how.layers,
        num_attention_heads=how.heads,
        num_key_value_heads=how.heads,
        max_position_embeddings=128,
        rope_parameters={"rope_type": "default", "rope_theta": how.theta},
        initializer_range=how.std,
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


def _certain(draw: np.random.Generator, progress: float) -> corpus.Passage:
    """Return a passage of the first phase, which begins with facts that stand several times.

    Where all kinds are mixed from the start, it is a matter of luck whether slots are ever found.
    """
    if draw.random() < (0.8 if progress < 0.15 else 0.1):
        return corpus.restated(draw)
    return corpus.described(draw) if draw.random() < 0.2 else corpus.numbers(draw)


def _uncertain(draw: np.random.Generator, progress: float) -> corpus.Passage:
    """Return a passage of the second phase: half of them with numbers that are only likely."""
    kind = draw.random()
    if kind < 0.5:
        return corpus.uncertain(draw)
    return corpus.described(draw) if kind > 0.9 else corpus.numbers(draw)


def _fit(model: Any, phase: _Phase, size: int, say: Say) -> list[float]:
    """Train in place: AdamW, warm-up, linear decay; return the mean loss of every tenth of the steps."""
    draw, steps = np.random.default_rng(0), phase.steps
    weights = list(model.parameters())
    optimizer = torch.optim.AdamW(weights, lr=phase.rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = paced(optimizer, lambda step: min((step + 1) / 100, (steps - step) / steps))

    def loss_of(step: int) -> torch.Tensor:
        passages = [phase.draw(draw, step / steps) for _ in range(size)]
        return cross_entropy(*_answers(model, *corpus.batch(passages)))

    def progress(step: int, loss: torch.Tensor) -> None:
        if (step + 1) % 200 == 0:
            say(f"LM, {phase.name} text: step {step + 1} of {steps}, loss {loss:.3f}")

    model.train()
    losses = minimise(loss_of, weights, optimizer, schedule, range(steps), clip=1.0, after=progress)
    model.eval()
    return tenths(losses)


def _answers(
    model: Any, tokens: torch.Tensor, labels: torch.Tensor, evidence: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits and right words where an answer is due, shapes [k, words] and [k]."""
    embeds = model.get_input_embeddings()(tokens)
    if len(evidence):
        digits = model.get_input_embeddings().weight[ids(NUMBERS[:DIGITS])]
        row, place = evidence[:, :2].long().T
        embeds = embeds.index_put((row, place), evidence[:, 2:] @ digits)
    due = labels >= 0
    hidden = model.model(inputs_embeds=embeds).last_hidden_state[due]
    return model.lm_head(hidden), labels[due]


@torch.inference_mode()
def skill_accuracy(model: Any, count: int = 400) -> dict[str, float]:
    """Return skill -> accuracy in text."""
    accuracy = {}
    for skill in corpus.SKILLS:
        logits, right = _answers(model, *corpus.batch(corpus.skill_passages(skill, count)))
        accuracy[skill] = (logits.argmax(-1) == right).double().mean().item()
    return accuracy
