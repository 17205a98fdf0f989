"""A prompt with the features of its inputs in place, and the part of it that a forward is given."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import pad

__all__ = ["Prompt", "PromptPart"]


@dataclass(frozen=True)
class PromptPart:
    """What a forward of ids [rows, l] gets of a prompt: labels [rows, l] and embeddings [rows, k, d], k ≤ l.

    What follows the first k positions was generated: it is text.
    """

    labels: torch.Tensor
    embeddings: torch.Tensor


@dataclass(frozen=True)
class Prompt:
    """Ids [B, L] of a prompt, their labels [B, L] (0 is text) and embeddings [B, L, d].

    `start` is the position of the first of them: a prompt may go on where a cache ends.
    """

    ids: torch.Tensor
    labels: torch.Tensor
    embeddings: torch.Tensor
    start: int = 0

    @classmethod
    def of_text(cls) -> Prompt:
        """Return the prompt whose every position is text."""
        none = torch.empty(1, 0)
        return cls(none, none, none)

    def part(self, ids: torch.Tensor, past: int) -> PromptPart | None:
        """Return what a forward of ids [rows, l] that follows `past` positions gets; None where all is text.

        Rows are those of the prompt, or several for each (beams, samples). Other ids than the prompt's are
        those of another text, such as the negative prompt of a guidance.
        """
        first = past - self.start
        own = self.ids[:, first : first + ids.shape[1]] if first >= 0 else self.ids[:, :0]
        length = own.shape[1]
        if not length or ids.shape[0] % len(own):
            return None
        labels = self.labels[:, first : first + length]
        each = ids.shape[0] // len(own)
        if not labels.any() or not torch.equal(own.repeat_interleave(each, dim=0), ids[:, :length]):
            return None
        embeddings = self.embeddings[:, first : first + length]
        labels = pad(labels, (0, ids.shape[1] - length)).repeat_interleave(each, dim=0)
        return PromptPart(labels, embeddings.repeat_interleave(each, dim=0))
