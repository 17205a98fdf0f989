"""The models, adapters and inputs that are measured: of real sizes, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model

__all__ = ["SUBJECTS", "Subject"]

RANK = 16
Batch = dict[str, torch.Tensor]


def _vit() -> Any:
    return transformers.ViTForImageClassification(transformers.ViTConfig(num_labels=100))


def _smollm() -> Any:
    config = transformers.LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    return transformers.LlamaForCausalLM(config)


def _images(draw: torch.Generator, size: int) -> Batch:
    return {"pixel_values": torch.randn(size, 3, 224, 224, generator=draw)}


def _tokens(draw: torch.Generator, size: int) -> Batch:
    return {"input_ids": torch.randint(1000, 40000, (size, 128), generator=draw)}


@dataclass(frozen=True)
class Subject:
    """A model with K random adapters of rank 16, and a batch of inputs for each."""

    title: str
    build: Callable[[], Any]
    targets: str
    count: int
    inputs: Callable[[torch.Generator, int], Batch]

    def model(self) -> Any:
        """Return the model in float32, in the mode for evaluation."""
        torch.manual_seed(0)
        return self.build().eval()

    def adapters(self, folder: Path) -> list[Path]:
        """Write the adapters, where they are not there yet, and return their folders."""
        folders = [folder / f"adapter-{k}" for k in range(self.count)]
        if not all((place / "adapter_config.json").exists() for place in folders):
            self._write(folders)
        return folders

    def _write(self, folders: list[Path]) -> None:
        config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=self.targets)
        tuned = get_peft_model(self.model(), config)
        draw = torch.Generator().manual_seed(0)
        for place in folders:
            with torch.no_grad():
                for name, parameter in tuned.named_parameters():
                    if "lora_" in name:
                        parameter.copy_(0.02 * torch.randn(parameter.shape, generator=draw))
            tuned.save_pretrained(place)

    def batches(self, size: int) -> list[Batch]:
        """Return one batch for each adapter."""
        draw = torch.Generator().manual_seed(0)
        return [self.inputs(draw, size) for _ in range(self.count)]


SUBJECTS = {
    "vit": Subject("ViT-B/16, 12 blocks of 768", _vit, r".*(_proj|fc[12])", 8, _images),
    "smollm": Subject("SmolLM2-135M's shape, 30 blocks of 576, 128 tokens", _smollm, r".*_proj", 6, _tokens),
}
"""Adapters change all linear maps of the blocks."""
