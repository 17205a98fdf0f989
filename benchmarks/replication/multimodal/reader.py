"""Prompts with inputs, and what a multimodal model and its processor make of them before its projector."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from submerge.gating import StopForward

__all__ = ["AT_ONCE", "INPUT_NAMES", "EncodedRow", "ModalityReader", "PromptRow"]

AT_ONCE = 32
"""Rows of one pass."""
INPUT_NAMES = {"image": "images", "audio": "audio", "video": "videos"}
"""Modality -> what its processor calls its inputs."""


@dataclass(frozen=True)
class PromptRow:
    """A prompt with a placeholder for each input, and the answer to it; modality -> inputs, in their order.

    Rows to train on have inputs of one modality. `caption` says what the first is, for the alignment of the
    projector; without one the answer is taken.
    """

    prompt: str
    inputs: Mapping[str, Sequence[Any]]
    answer: str
    caption: str = ""

    @property
    def modality(self) -> str:
        """Return the only modality; an error where there are none or several."""
        (modality,) = self.inputs
        return modality


@dataclass(frozen=True)
class EncodedRow:
    """Token ids, with a placeholder for each feature of the inputs, and the projector's inputs [n, d]."""

    ids: list[int]
    answer: list[int]
    caption: list[int]
    modality: str
    features: torch.Tensor


class ModalityReader:
    """A multimodal model of one modality, and its processor: what makes rows of prompts and inputs."""

    def __init__(self, folder: Path, modality: str) -> None:
        import transformers

        self.modality = modality
        config = transformers.AutoConfig.from_pretrained(folder)
        kind = getattr(transformers, config.architectures[0])
        self.model: Any = kind.from_pretrained(folder, dtype=torch.float32).eval()
        self.processor: Any = transformers.AutoProcessor.from_pretrained(folder)
        self.placeholder: int = getattr(config, f"{modality}_token_id")
        self.model.requires_grad_(False)

    @property
    def projector(self) -> nn.Module:
        """Return the map from features to the language model's width."""
        projector: nn.Module = self.model.model.multi_modal_projector
        return projector

    def encode(self, rows: Sequence[PromptRow]) -> list[EncodedRow]:
        """Return the rows with the encoder's features of their inputs."""
        parts = (self._encode(rows[at : at + AT_ONCE]) for at in range(0, len(rows), AT_ONCE))
        return [row for part in parts for row in part]

    def _encode(self, rows: Sequence[PromptRow]) -> Iterator[EncodedRow]:
        inputs = self.processor(
            text=[row.prompt for row in rows],
            **{INPUT_NAMES[self.modality]: self._flat(rows)},
            padding=True,
            return_tensors="pt",
            **({"sampling_rate": self._rate} if self.modality == "audio" else {}),
        )
        features = self._features(inputs)
        held = (inputs["input_ids"] == self.placeholder).sum(1).tolist()
        for row, ids, mask, part in zip(
            rows, inputs["input_ids"], inputs["attention_mask"], features.split(held), strict=True
        ):
            answer, caption = self._ids(row.answer), self._ids(row.caption or row.answer)
            yield EncodedRow(ids[mask.bool()].tolist(), answer, caption, self.modality, part.clone())

    def _flat(self, rows: Sequence[PromptRow]) -> list[Any]:
        each = [list(row.inputs[self.modality]) for row in rows]
        return each if self.modality == "image" else [one for row in each for one in row]

    @property
    def _rate(self) -> int:
        return int(self.processor.feature_extractor.sampling_rate)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.processor.tokenizer(text, add_special_tokens=False).input_ids
        return ids

    @torch.no_grad()
    def _features(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return what the projector gets for the placeholders, in the order of all places, shape [n, d].

        The model's own forward says which: the projector is made to return its rows' numbers, and they are
        read where the language model is given them.
        """
        seen: dict[str, torch.Tensor] = {}

        def number(_: nn.Module, args: tuple[torch.Tensor, ...], out: torch.Tensor) -> torch.Tensor:
            seen["features"] = args[0].flatten(0, -2)
            numbers = torch.arange(len(seen["features"]), dtype=out.dtype)
            return numbers.view(*out.shape[:-1], 1).expand_as(out)

        def stop(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, torch.Tensor]) -> None:
            seen["embeddings"] = kwargs["inputs_embeds"]
            raise StopForward

        language = self.model.model.language_model
        handles = (
            self.projector.register_forward_hook(number),
            language.register_forward_pre_hook(stop, with_kwargs=True),
        )
        try:
            self.model(**inputs)
        except StopForward:
            pass
        finally:
            for handle in handles:
                handle.remove()
        held = inputs["input_ids"] == self.placeholder
        return seen["features"][seen["embeddings"][held][:, 0].long()]
