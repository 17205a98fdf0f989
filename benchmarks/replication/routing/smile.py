"""SMILE (arXiv 2408.10174): every linear layer routes each token to low-rank experts of its own.

    y = W_0 x + b_0 + Σ_{t ∈ top-K} p_t (U_t diag(s_t) V_t x + b_t − b_0)
    p = softmax_t ‖V_t' x‖, of which the K largest count, divided by their sum

V_t has the leading `rank` right singular vectors of task t's update, V_t' the first `gate` of them. The rest
of the network is the mean of the fine-tunes. The layers have no common opinion of the task, so its head is
the one that most of the gates' weight fell to, over all layers and tokens of an input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

__all__ = ["Smile"]


class _Layer(nn.Module):
    """One linear layer and its experts; `weights`, shape [n, tokens, T], are the gate's of the last call."""

    weights: torch.Tensor

    def __init__(self, base: nn.Linear, tuned: Sequence[nn.Linear], rank: int, gate: int, top: int) -> None:
        super().__init__()
        self.base, self.top, self.gate = base, top, gate
        lefts, rights, biases = [], [], []
        for one in tuned:
            u, s, v = torch.linalg.svd((one.weight - base.weight).double(), full_matrices=False)
            lefts.append((u * s)[:, :rank].float())
            rights.append(v[:rank].float())
            biases.append(torch.zeros(len(u)) if base.bias is None else (one.bias - base.bias).detach())
        self.left, self.right = torch.stack(lefts), torch.stack(rights)  # [T, m, r], [T, r, n]
        self.bias = torch.stack(biases)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inside = torch.einsum("trd,...d->...tr", self.right, x)
        odds = inside[..., : self.gate].norm(dim=-1).softmax(-1)
        best = odds.topk(self.top, dim=-1)
        p = torch.zeros_like(odds).scatter(-1, best.indices, best.values)
        self.weights = p / p.sum(-1, keepdim=True)
        experts = torch.einsum("tmr,...tr->...m", self.left, inside * self.weights.unsqueeze(-1))
        return linear(x, self.base.weight, self.base.bias) + experts + self.weights @ self.bias


class Smile:
    """An encoder with SMILE's layers in the place of its linear ones."""

    def __init__(
        self, base: Any, tuned: Sequence[Any], *, rank: int = 16, gate: int = 4, top: int = 1
    ) -> None:
        """Change `base` in place; `tuned` are the fine-tunes, in the order of the tasks."""
        own = [dict(model.named_modules()) for model in tuned]
        linears = {
            name: module
            for name, module in base.named_modules()
            if isinstance(module, nn.Linear)
            and any(not torch.equal(module.weight, modules[name].weight) for modules in own)
        }
        parameters = [dict(model.named_parameters()) for model in tuned]
        with torch.no_grad():
            for name, parameter in base.named_parameters():
                if name.rpartition(".")[0] not in linears:
                    parameter.copy_(torch.stack([each[name] for each in parameters]).mean(0))
        self.layers: list[_Layer] = []
        for name, module in linears.items():
            parent, _, leaf = name.rpartition(".")
            layer = _Layer(module, [modules[name] for modules in own], rank, gate, top)
            setattr(base.get_submodule(parent), leaf, layer)
            self.layers.append(layer)
        self.model = base

    @torch.inference_mode()
    def __call__(self, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the last hidden states, and the task of each input."""
        hidden = self.model(**batch).last_hidden_state
        mask = batch.get("attention_mask")
        votes = torch.zeros(len(hidden), self.layers[0].bias.shape[0])
        for layer in self.layers:
            weights = layer.weights
            votes += (weights if mask is None else weights * mask.unsqueeze(-1)).sum(1)
        return hidden, votes.argmax(1)

    @property
    def numbers(self) -> int:
        """Return how many numbers the experts hold."""
        return sum(part.numel() for layer in self.layers for part in (layer.left, layer.right, layer.bias))
