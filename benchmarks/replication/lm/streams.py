"""An LM that reads soft tokens, and whose linear maps have an update for each stream of tokens.

Streams are numbers: 0 is text, then one for each modality. A position's stream says which update it gets:
y = W x + Δ_s x, in every linear map of every block, as in ModelCompose's decoupled training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from benchmarks.replication.lm.updates import Updates, linears, product

__all__ = ["TEXT", "SoftTokens", "StreamUpdates", "StreamedLM", "TokenBatch"]

TEXT = 0


@dataclass(frozen=True)
class SoftTokens:
    """Features that a projector turns into tokens, and where these go in a batch.

    `rows` [k] are sequences, `places` [k] the first position in each, `features` [k, …] an encoder's output.
    """

    rows: torch.Tensor
    places: torch.Tensor
    features: torch.Tensor


@dataclass(frozen=True)
class TokenBatch:
    """Sequences of ids and streams, shape [n, length]; labels are −100 but where an answer is due."""

    ids: torch.Tensor
    streams: torch.Tensor
    labels: torch.Tensor
    soft: Mapping[str, SoftTokens] = field(default_factory=dict)


@dataclass(frozen=True)
class StreamUpdates:
    """Updates of the linear maps, and the streams whose tokens take them; None is all tokens."""

    updates: Updates
    streams: tuple[int, ...] | None = None


class StreamedLM:
    """Answers batches by an LM, projectors and updates; the latter two may be exchanged at any time."""

    def __init__(
        self, lm: Any, projectors: Mapping[str, nn.Module], updates: Sequence[StreamUpdates] = ()
    ) -> None:
        self.lm, self.projectors, self.updates = lm, projectors, updates
        self._masks: list[torch.Tensor | None] = []
        for name, module in linears(lm):
            module.register_forward_hook(lambda _, args, out, name=name: self._updated(name, args[0], out))

    def _updated(self, name: str, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        for stream, mask in zip(self.updates, self._masks, strict=True):
            update = stream.updates.get(name)
            if update is not None:
                out = out + product(update, x, mask)
        return out

    def hidden(self, batch: TokenBatch) -> torch.Tensor:
        """Return the last block's output at every position, shape [n, length, width]."""
        embeds = self.lm.get_input_embeddings()(batch.ids)
        for name, soft in batch.soft.items():
            tokens = self.projectors[name](soft.features)  # [k, t, width]
            places = soft.places[:, None] + torch.arange(tokens.shape[1])
            embeds = embeds.index_put((soft.rows[:, None].expand_as(places), places), tokens)
        self._masks = [_mask(batch.streams, stream.streams) for stream in self.updates]
        hidden: torch.Tensor = self.lm.model(inputs_embeds=embeds).last_hidden_state
        return hidden

    def answers(self, batch: TokenBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits and right words where an answer is due, shapes [k, words] and [k]."""
        due = batch.labels >= 0
        return self.lm.lm_head(self.hidden(batch)[due]), batch.labels[due]

    @torch.inference_mode()
    def right(self, batch: TokenBatch) -> torch.Tensor:
        """Return for each answer whether it is right, shape [k]."""
        logits, labels = self.answers(batch)
        return logits.argmax(-1) == labels

    def accuracy(self, batches: Sequence[TokenBatch]) -> float:
        """Return the share of right answers."""
        return torch.cat([self.right(batch) for batch in batches]).double().mean().item()


def _mask(streams: torch.Tensor, chosen: tuple[int, ...] | None) -> torch.Tensor | None:
    """Return ones at the tokens of these streams, shape [n, length, 1]; None for all."""
    return None if chosen is None else torch.isin(streams, torch.tensor(chosen)).float()[..., None]
