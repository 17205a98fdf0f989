"""Updates for gated modules, by seeds; a linear map with an explicit weight for each token; a projector."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from submerge.algebra import Triplets
from submerge.gating import Gate, GatedFactors, GatedModel, is_transposed


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def triplets(
    m: int, n: int, count: int, r: int = 2, seed: int = 0, dtype: torch.dtype = torch.float32
) -> dict[int, Triplets]:
    """Return the leading triplets of random updates [m, n]."""
    parts = {}
    for k in range(count):
        u, s, vh = torch.linalg.svd(normal(seed + k, m, n, dtype=dtype), full_matrices=False)
        parts[k] = Triplets(u[:, :r].contiguous(), s[:r] / 4, vh[:r].contiguous())
    return parts


def dense(parts: Mapping[int, Triplets], k: int) -> torch.Tensor:
    """Return update k as a matrix."""
    return parts[k].left @ parts[k].values.diag() @ parts[k].right


def gate_maps(model: nn.Module, gate: Gate, count: int) -> tuple[GatedModel, dict[str, dict[int, Triplets]]]:
    """Gate the linear maps of a model's blocks, and return their updates by name."""
    gated, updates = GatedModel(gate), {}
    for number, (name, module) in enumerate(list(model.named_modules())):
        transposed = is_transposed(module)
        if (isinstance(module, nn.Linear) or transposed) and name != "lm_head":
            m, n = module.weight.shape
            updates[name] = triplets(m, n, count, seed=100 * number, dtype=module.weight.dtype)
            update = GatedFactors(gate, name, updates[name], rule="sum", scale=1.0, transposed=transposed)
            gated.add(model, {name: {"weight": update}})
    return gated, updates


class PerToken(nn.Module):
    """y_bl = W_label(b, l) x_bl + b, of weights that are written out: W for label 0, W + Δ_k−1 for label k.

    What follows the labels is text, 0.
    """

    def __init__(self, linear: nn.Linear, parts: Mapping[int, Triplets], labels: torch.Tensor) -> None:
        super().__init__()
        updates = torch.stack([torch.zeros_like(linear.weight), *(dense(parts, k) for k in sorted(parts))])
        self.weights = nn.Parameter(linear.weight.detach() + updates)  # [1 + K, m, n]
        self.bias, self.labels = linear.bias, labels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        labels = self.labels.repeat_interleave(x.shape[0] // self.labels.shape[0], dim=0)
        labels = nn.functional.pad(labels, (0, x.shape[1] - labels.shape[1]))  # [rows, L]
        y = torch.einsum("blmn,bln->blm", self.weights[labels], x)
        return y if self.bias is None else y + self.bias


class Projector(nn.Module):
    """Two linear maps with a GELU, from patches to tokens, as in LLaVA."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 12), nn.Linear(12, 4)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.down(nn.functional.gelu(self.up(patches)))
        return y
