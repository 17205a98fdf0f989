"""One language model with a LoRA for text and one for each modality's tokens (DAMC).

    y_t = W x_t + s B_language A_language x_t      where position t holds text
    y_t = W x_t + s B_modality A_modality x_t      where it holds a token of the modality

Both are PEFT's adapters of the multimodal model, active at once; each is masked where it must not act.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.replication.multimodal.align import ProjectorAlignment
from benchmarks.replication.multimodal.reader import AT_ONCE, EncodedRow, ModalityReader

__all__ = ["LANGUAGE", "Decoupled", "DecoupledTraining"]

LANGUAGE = "language"
"""The adapter of text."""
IGNORED = -100
"""Label of a place where no token is due."""
MAPS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""All maps of a layer, as DAMC has it."""


@dataclass(frozen=True)
class DecoupledTraining:
    """How projector and LoRAs are trained.

    The projector is first aligned to words by `align_steps`, which no pass of the language model needs.
    Without `apart` one LoRA acts on all tokens: the naive training. `targets` are maps of each layer.
    """

    steps: int = 150
    batch: int = 8
    rank: int = 16
    alpha: int = 32
    rate: float = 1e-3
    projector_rate: float = 2e-4
    align_steps: int = 400
    align_rate: float = 2e-3
    align_batch: int = 64
    warmup: int = 10
    clip: float = 1.0
    targets: tuple[str, ...] = MAPS
    apart: bool = True

    def config(self) -> dict[str, Any]:
        """Return all numbers, for a marker or a report."""
        return asdict(self)

    @property
    def alignment(self) -> ProjectorAlignment:
        """Return how the projector is aligned."""
        return ProjectorAlignment(self.align_steps, self.align_rate, self.align_batch, self.warmup)


@dataclass
class Streams:
    """Adapter -> where it acts, [B, L]; what the hooks of the adapters read in a pass."""

    masks: dict[str, torch.Tensor] = field(default_factory=dict)


class Decoupled:
    """One language model with a LoRA for text and one for each modality's tokens, read by its readers.

    All readers share the language model of the first. `folders` are where adapters are loaded from; without
    them they are new.
    """

    def __init__(
        self, readers: Sequence[ModalityReader], training: DecoupledTraining, folder: Path | None = None
    ) -> None:
        self.readers = {reader.modality: reader for reader in readers}
        first = readers[0]
        for other in readers[1:]:
            other.model.model.language_model = first.model.model.language_model
        self.language, self.head = first.model.model.language_model, first.model.lm_head
        self.names = (LANGUAGE, *(self.readers if training.apart else ()))
        self.training, self.streams = training, Streams()
        self.adapted = self._adapted(first.model, folder)
        self._hook()

    def _adapted(self, model: nn.Module, folder: Path | None) -> Any:
        from peft import LoraConfig, PeftModel, get_peft_model

        how = self.training
        if folder:
            adapted = PeftModel.from_pretrained(model, folder / LANGUAGE, adapter_name=LANGUAGE)
        else:
            maps = "|".join(how.targets)
            lora = LoraConfig(
                r=how.rank, lora_alpha=how.alpha, target_modules=rf".*language_model\..*\.({maps})"
            )
            adapted = get_peft_model(model, lora, adapter_name=LANGUAGE)
        for name in self.names[1:]:
            if folder:
                adapted.load_adapter(folder / name, name)
            else:
                adapted.add_adapter(name, lora)
        adapted.base_model.set_adapter(list(self.names))
        return adapted

    def _hook(self) -> None:
        """Let each LoRA act on its own tokens alone."""

        def masked(name: str) -> Callable[..., torch.Tensor]:
            return lambda _, args, out: out * self.streams.masks[name][..., None]

        for module in self.adapted.modules():
            for name in self.names if hasattr(module, "lora_B") else ():
                if name in module.lora_B:
                    module.lora_B[name].register_forward_hook(masked(name))

    def save(self, folder: Path) -> None:
        """Write adapters, and what the readers are made of: each a folder, of one reader `folder` itself."""
        self.adapted.save_pretrained(folder)
        self.adapted.unload()
        for name, reader in self.readers.items():
            place = folder if len(self.readers) == 1 else folder / f"model-{name}"
            reader.model.save_pretrained(place)
            reader.processor.save_pretrained(place)

    def hidden(self, rows: Sequence[EncodedRow], ids: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return the last hidden states of these ids of the rows, padded on the right, shape [B, L, H]."""
        shape = len(ids), max(map(len, ids))
        tokens, mask = (torch.zeros(shape, dtype=torch.long) for _ in range(2))
        for number, one in enumerate(ids):
            tokens[number, : len(one)], mask[number, : len(one)] = torch.tensor(one), 1
        embeddings = self.language.get_input_embeddings()(tokens.clamp(max=self.rows - 1))
        held = {}
        for name, reader in self.readers.items():
            mine = torch.tensor([row.modality == name for row in rows])
            held[name] = (tokens == reader.placeholder) & mine[:, None]
            if mine.any():
                features = torch.cat([row.features for row in rows if row.modality == name])
                embeddings = embeddings.masked_scatter(held[name][..., None], reader.projector(features))
        text = ~torch.stack(list(held.values())).any(0) if self.training.apart else mask >= 0
        self.streams.masks = {LANGUAGE: text.float(), **{name: one.float() for name, one in held.items()}}
        out = self.language(inputs_embeds=embeddings, attention_mask=mask, use_cache=False)
        hidden: torch.Tensor = out.last_hidden_state
        return hidden

    @property
    def rows(self) -> int:
        """Return the rows of the table of embeddings."""
        return len(self.language.get_input_embeddings().weight)

    def loss(self, rows: Sequence[EncodedRow], end: int) -> torch.Tensor:
        """Return the mean loss of the answers' tokens and of the end; other logits are not computed."""
        ids, labels = [], []
        for row in rows:
            answer = [*row.answer, end]
            ids.append([*row.ids, *answer[:-1]])
            labels.append([IGNORED] * (len(row.ids) - 1) + answer)
        longest = max(map(len, ids))
        due = torch.tensor([one + [IGNORED] * (longest - len(one)) for one in labels])
        hidden = self.hidden(rows, ids)
        return cross_entropy(self.head(hidden[due != IGNORED]), due[due != IGNORED])

    @torch.inference_mode()
    def first_tokens(self, rows: Sequence[EncodedRow]) -> list[int]:
        """Return the most likely next token after each prompt, among all."""
        answers = [0] * len(rows)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
        for at in range(0, len(order), AT_ONCE):
            part = [rows[i] for i in order[at : at + AT_ONCE]]
            hidden = self.hidden(part, [row.ids for row in part])
            last = hidden[torch.arange(len(part)), torch.tensor([len(row.ids) - 1 for row in part])]
            for i, token in zip(order[at : at + AT_ONCE], self.head(last).argmax(-1).tolist(), strict=True):
                answers[i] = token
        return answers
