"""An image and an audio specialist of one language model, each with two LoRA adapters.

Text tokens run with the adapter `language`, the tokens of the modality with the modality's own: the decoupled
training of ModelCompose. The language model stays as it is, so that both specialists have it in common.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import AutoProcessor, LlamaConfig, LlamaForCausalLM

from _language import new_tokenizer
from _modalities import Modality
from _sounds import RATE

__all__ = ["Specialist", "load_specialist", "new_specialist", "process"]

RANK = 8


@dataclass(frozen=True)
class Specialist:
    """A multimodal model with its two adapters, and its processor."""

    modality: Modality
    model: PeftModel
    processor: Any

    def save(self, folder: Path) -> None:
        """Write an ordinary folder of a multimodal model, with a folder in it for each adapter."""
        self.model.save_pretrained(folder)
        self.model.unload().save_pretrained(folder)
        self.processor.save_pretrained(folder)


def load_specialist(modality: Modality, folder: Path) -> Specialist:
    """Return what `Specialist.save` wrote, ready to be asked."""
    processor = AutoProcessor.from_pretrained(folder)
    model = modality.model_class.from_pretrained(folder)
    tuned = PeftModel.from_pretrained(model, folder / "language", adapter_name="language")
    tuned.load_adapter(folder / modality.name, modality.name)
    return Specialist(modality, _decoupled(tuned.eval(), modality, processor), processor)


def new_specialist(modality: Modality, lm: LlamaForCausalLM) -> Specialist:
    """Return an untrained one around the language model, whose tables get a row for the placeholder."""
    torch.manual_seed(0)
    processor = modality.new_processor(new_tokenizer([modality.placeholder]))
    text = LlamaConfig(**lm.config.to_dict() | {"vocab_size": len(processor.tokenizer)})
    model = modality.model_class(modality.new_config(text, _placeholder_id(modality, processor)))
    own = {**_named(model.model.language_model, "model"), **_named(model.lm_head, "lm_head")}
    for name, value in lm.state_dict().items():
        own[name].data[: len(value)] = value
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=r".*language_model\.layers.*_proj")
    tuned = get_peft_model(model, config, adapter_name="language")
    tuned.add_adapter(modality.name, config)
    return Specialist(modality, _decoupled(tuned, modality, processor), processor)


def _named(module: nn.Module, prefix: str) -> dict[str, nn.Parameter]:
    return dict(module.named_parameters(prefix=prefix))


def _placeholder_id(modality: Modality, processor: Any) -> int:
    return processor.tokenizer.convert_tokens_to_ids(modality.placeholder)


def _decoupled(model: PeftModel, modality: Modality, processor: Any) -> PeftModel:
    """Let text tokens run with the adapter `language`, and placeholders with the modality's, in place.

    PEFT chooses adapters for a sample, not for a token. So both are active, and A x, and with it B A x, is
    made zero at the tokens of the other one.
    """
    placeholder, mask = _placeholder_id(modality, processor), {}

    def look(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        mask[modality.name] = (kwargs["input_ids"] == placeholder)[..., None]
        mask["language"] = ~mask[modality.name]

    model.base_model.set_adapter(["language", modality.name])
    model.register_forward_pre_hook(look, with_kwargs=True)
    for module in model.modules():
        if isinstance(module, LoraLayer):
            for name, inner in module.lora_A.items():
                inner.register_forward_hook(lambda _, args, out, name=name: out * mask[name])
    return model


def process(processor: Any, texts: Sequence[str], **inputs: Any) -> Any:
    """Return what a processor, or a tokenizer, makes of prompts, padded on the left."""
    if "audio" in inputs:
        inputs["sampling_rate"] = RATE
    return processor(text=list(texts), padding=True, return_tensors="pt", **inputs)
