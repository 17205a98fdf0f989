"""A small LLaVA-style model, and adapters of it: one for each kind of picture.

The encoder stays as it is drawn at random: what it shows of a picture is enough for a projector, which every
adapter has of its own. The adapters are trained in two ways: each from the base, or one after another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import AutoProcessor, LlamaConfig, LlamaForCausalLM, LlavaForConditionalGeneration

from _examples import Examples
from _language import ONE, constant_for, new_tokenizer
from _modalities import MODALITIES
from _specialists import process

__all__ = ["accuracy", "inputs_of", "load_adapter", "load_base", "new_adapter", "save_base", "train"]

IMAGE = MODALITIES["image"]
STEPS, RATE, BATCH = 200, 4e-3, 48
RANK = 8


def save_base(lm: LlamaForCausalLM, folder: Path) -> None:
    """Write the language model behind an encoder and a projector that are not trained yet."""
    torch.manual_seed(0)
    processor = IMAGE.new_processor(new_tokenizer([IMAGE.placeholder]))
    tokenizer = processor.tokenizer
    text = LlamaConfig(**lm.config.to_dict() | {"vocab_size": len(tokenizer)})
    model = LlavaForConditionalGeneration(
        IMAGE.new_config(text, tokenizer.convert_tokens_to_ids(IMAGE.placeholder))
    )
    model.model.language_model.load_state_dict(
        {**lm.model.state_dict(), "embed_tokens.weight": _extended(lm.model.embed_tokens.weight, model)}
    )
    model.lm_head.weight.data[: lm.config.vocab_size] = lm.lm_head.weight.data
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def _extended(table: torch.Tensor, model: LlavaForConditionalGeneration) -> torch.Tensor:
    """Return a table with a row more for the placeholder."""
    rows = model.model.language_model.embed_tokens.weight.detach().clone()
    rows[: len(table)] = table
    return rows


def load_base(folder: Path) -> tuple[LlavaForConditionalGeneration, Any]:
    """Return the base and its processor."""
    return LlavaForConditionalGeneration.from_pretrained(folder), AutoProcessor.from_pretrained(folder)


def load_adapter(model: LlavaForConditionalGeneration, folder: Path, **options: Any) -> PeftModel:
    """Return a model with an adapter that was saved."""
    return PeftModel.from_pretrained(model, folder, **options)


def new_adapter(model: LlavaForConditionalGeneration) -> PeftModel:
    """Return a model with a fresh LoRA on the language model, and a projector of its own."""
    torch.manual_seed(0)
    config = LoraConfig(
        r=RANK,
        lora_alpha=2 * RANK,
        target_modules=r".*language_model\.layers.*_proj",
        modules_to_save=["multi_modal_projector"],
    )
    return get_peft_model(model, config)


def train(model: PeftModel, processor: Any, examples: Examples, steps: int = STEPS) -> None:
    """Train the adapter on questions about pictures of one kind."""
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=RATE, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    model.train()
    for inputs, labels in _batches(processor, examples, steps):
        due = labels[:, 1:] >= 0
        loss = cross_entropy(model(**inputs).logits[:, :-1][due], labels[:, 1:][due])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
    model.eval()


def _batches(
    processor: Any, examples: Examples, steps: int
) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
    """Yield inputs, padded on the left, and labels that are −100 but for the answers and their ends."""
    draw = np.random.default_rng(0)
    for _ in range(steps):
        rows = draw.integers(len(examples), size=BATCH).tolist()
        asked = [_asked(examples.numbers[row], draw) for row in rows]
        inputs = _read(processor, examples, rows, [" ".join((*one, "</s>")) for one in asked])
        labels = torch.full_like(inputs["input_ids"], -100)
        labels[:, -2:] = inputs["input_ids"][:, -2:]
        yield dict(inputs), labels


def _asked(number: int, draw: np.random.Generator) -> tuple[str, str]:
    """Return a question about a picture, and its answer."""
    question, constant = ONE[draw.integers(len(ONE))], constant_for(draw)
    return question.asked("image", constant=constant), question.answer(number, number, constant)


def _read(processor: Any, examples: Examples, rows: Sequence[int], texts: Sequence[str]) -> Any:
    prompts = [f"{IMAGE.fact} {text}" for text in texts]
    return process(processor, prompts, images=[examples.inputs[row] for row in rows])


def inputs_of(processor: Any, examples: Examples, count: int) -> dict[str, torch.Tensor]:
    """Return questions about pictures as a processor encodes them, without their answers."""
    draw, rows = np.random.default_rng(2), range(count)
    return dict(_read(processor, examples, rows, [_asked(examples.numbers[row], draw)[0] for row in rows]))


@torch.inference_mode()
def accuracy(model: Any, processor: Any, examples: Examples) -> float:
    """Return the share of questions about pictures that a model answers, in percent."""
    draw = np.random.default_rng(1)
    asked = [_asked(number, draw) for number in examples.numbers]
    inputs = _read(processor, examples, range(len(examples)), [question for question, _ in asked])
    words = processor.batch_decode(model(**inputs).logits[:, -1].argmax(-1)[:, None])
    return 100 * float(np.mean([word == answer for word, (_, answer) in zip(words, asked, strict=True)]))
