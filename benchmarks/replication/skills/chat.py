"""Conversations as token ids: what the LM is trained on, what it is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.replication.skills.metrics import METRICS
from benchmarks.replication.skills.tasks import Example, Skill

__all__ = ["Chat", "Conversation", "TrainingBatch", "load"]


@dataclass(frozen=True)
class Conversation:
    """The token ids of a question, from the system message to where an answer begins, and of an answer."""

    question: list[int]
    answer: list[int]

    def __len__(self) -> int:
        return len(self.question) + len(self.answer)


@dataclass(frozen=True)
class TrainingBatch:
    """Conversations padded on the right; `labels` are -100 where no answer is due, all shape [n, length]."""

    tokens: torch.Tensor
    mask: torch.Tensor
    labels: torch.Tensor

    @classmethod
    def of(cls, conversations: Sequence[Conversation]) -> TrainingBatch:
        """Return the batch; a token's label is what comes after it."""
        shape = len(conversations), max(map(len, conversations)) - 1
        tokens, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
        labels = torch.full(shape, -100)
        for row, one in enumerate(conversations):
            ids = torch.tensor(one.question + one.answer)
            end = len(ids) - 1
            tokens[row, :end], mask[row, :end] = ids[:-1], 1
            labels[row, len(one.question) - 1 : end] = ids[len(one.question) :]
        return cls(tokens, mask, labels)


class Chat:
    """The tokenizer and the chat template of an LM's folder."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)

    def prompt(self, skill: Skill, example: Example) -> str:
        """Return what stands before an answer, as text with the template's marks.

        The skill's instruction is the system message, which saves the template's own one of 20 tokens.
        """
        messages = [
            {"role": "system", "content": skill.instruction},
            {"role": "user", "content": example.question},
        ]
        text: str = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return text

    def conversations(self, skill: Skill, examples: Sequence[Example]) -> list[Conversation]:
        """Return a conversation for each right answer of each example."""
        end = self.tokenizer.eos_token_id
        return [
            Conversation(self._ids(self.prompt(skill, example)), [*self._ids(answer), end])
            for example in examples
            for answer in example.answers
        ]

    @torch.inference_mode()
    def answers(
        self, model: Any, skill: Skill, examples: Sequence[Example], batch: int = 32, **more: Any
    ) -> list[str]:
        """Return the answer to each example by greedy decoding, in their order.

        Questions of like length go together. What else is given goes to `model.generate`.
        """
        prompts = [self.prompt(skill, example) for example in examples]
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        answers = [""] * len(prompts)
        for at in range(0, len(order), batch):
            which = order[at : at + batch]
            inputs = self.padded([prompts[i] for i in which])
            out = model.generate(**inputs, max_new_tokens=skill.new_tokens, do_sample=False, **more)
            new = out[:, inputs["input_ids"].shape[1] :]
            texts = self.tokenizer.batch_decode(new, skip_special_tokens=True)
            answers = [texts[which.index(i)] if i in which else text for i, text in enumerate(answers)]
        return answers

    def score(self, model: Any, skill: Skill, examples: Sequence[Example], **more: Any) -> float:
        """Return the mean score of a model's answers; what else is given goes to `model.generate`."""
        metric = METRICS[skill.metric]
        answers = self.answers(model, skill, examples, **more)
        scores = [metric(answer, one.answers) for answer, one in zip(answers, examples, strict=True)]
        return sum(scores) / len(scores)

    def padded(self, prompts: Sequence[str], side: str = "left") -> dict[str, torch.Tensor]:
        """Return prompts padded on the left, so that answers begin at one place, or on the right."""
        inputs = self.tokenizer(list(prompts), padding=True, padding_side=side, return_tensors="pt")
        return {name: inputs[name] for name in ("input_ids", "attention_mask")}

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids


def load(folder: Path, base: Path | None = None) -> Any:
    """Return the LM of a folder in float32, for use: a checkpoint, or a PEFT adapter on the base."""
    from transformers import AutoModelForCausalLM

    if base is not None and (folder / "adapter_config.json").exists():
        from peft import PeftModel

        return PeftModel.from_pretrained(load(base), folder).merge_and_unload().eval()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
