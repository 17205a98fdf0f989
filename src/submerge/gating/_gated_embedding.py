"""The gate of a table of embeddings."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from submerge.gating._assignment import Assignment
from submerge.gating._gated_module import GatedOther
from submerge.gating._layout import Group

__all__ = ["GatedEmbedding"]


class GatedEmbedding(GatedOther):
    """An embedding: the rows of a table, each with the row of its group's update.

    Tables have no streams: what is no text has no ids.
    """

    def run(self, module: nn.Module, assignment: Assignment, ids: torch.Tensor) -> torch.Tensor:
        """Return E[i] + U_S[i] M_S V_S for ids i [B, …]."""
        if assignment.picks_rows:
            return super().run(module, assignment, ids)  # type: ignore[no-any-return]
        ids = assignment.spread(ids)
        layout = assignment.layout(self.name, ids.shape)
        rows = ids.reshape(-1)  # [N]
        base = self.factors.resident(module.weight)  # type: ignore[arg-type]
        y = F.embedding(rows, base)  # [N, d]
        for group in layout.groups:
            self._add_(group.of(y), group.of(rows), base, group.among(self.factors.places))
        return y.view(*ids.shape, -1)

    def _add_(self, y: torch.Tensor, ids: torch.Tensor, base: torch.Tensor, group: Group) -> None:
        """Add the rows of a group's update that ids [N] name to y [N, d]."""
        update, members = self.factors, group.members
        if not members:
            return
        if update.is_ill_conditioned(group, y):
            y.copy_(F.embedding(ids, update.dense(base, group)))
            return
        left = [F.embedding(ids, update.up.T[:, update.places[k]]) for k in members]  # [N, r_k] each
        core = update.core(group, y)
        low = torch.cat(left, dim=-1).to(y.dtype)  # [N, R]
        low = low * core if core.ndim == 1 else low @ core.T
        y.addmm_(low, update.rows_of(update.down, members).to(y.dtype))
