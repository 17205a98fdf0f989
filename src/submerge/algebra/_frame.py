"""The common core of several updates: all that they are, in as few coordinates as hold them.

With Q_L an orthonormal basis of all the left factors' columns and Q_R of all the right factors' rows,

    Δ_t = Q_L K_t Q_Rᵀ   for every t, exactly,

where K_t has at most R = Σ r_t rows and columns. A method that commutes with rotations of the output
and input space (every method built on singular vectors does) may merge the K_t in place of the Δ_t:
one dense implementation then serves adapters at O((m + n) R²) and full fine-tunes alike.
(Core Space, arXiv 2509.17786, uses the same fact.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from submerge.algebra._update import Dense, LowRank, Streamed, Update, Zero
from submerge.deferred import torch

__all__ = ["Frame", "frame"]


@dataclass(frozen=True)
class Frame:
    """Bases `left` [m, a] and `right` [n, b] (None: the identity) and the updates' cores [a, b] in them.

    Examples:
        >>> import torch
        >>> from submerge.algebra import LowRank, frame
        >>> column = torch.ones(8, 1)
        >>> common = frame([LowRank(column, torch.ones(1, 6)), LowRank(column, torch.eye(6)[:1])])
        >>> common.left.shape, common.right.shape
        (torch.Size([8, 2]), torch.Size([6, 2]))
        >>> common.lift(common.cores[0]).dense().allclose(torch.ones(8, 6))
        True
    """

    left: torch.Tensor | None
    right: torch.Tensor | None
    cores: tuple[Update, ...]
    dtype: torch.dtype

    def lift(self, core: Update) -> Update:
        """Return Q_L K Q_Rᵀ for a merged core K [a, b]."""
        if isinstance(core, Zero):
            m = core.shape[0] if self.left is None else self.left.shape[0]
            n = core.shape[1] if self.right is None else self.right.shape[0]
            return Zero((m, n))
        if self.left is None and self.right is None and not isinstance(core, LowRank):
            return Dense(core.matrix.to(self.dtype)) if isinstance(core, Dense) else core
        if isinstance(core, LowRank):
            left, right = core.left, core.right
        elif core.shape[0] <= core.shape[1]:  # K as I K or K I, whichever is narrower
            left, right = torch.eye(core.shape[0], dtype=torch.float64), core.dense()
        else:
            left, right = core.dense(), torch.eye(core.shape[1], dtype=torch.float64)
        left = left if self.left is None else self.left @ left.to(self.left.dtype)
        right = right if self.right is None else right.to(self.right.dtype) @ self.right.T
        return LowRank(left.to(self.dtype), right.to(self.dtype))


def frame(updates: Sequence[Update]) -> Frame:
    """Return the frame of updates of one shape: small float64 cores where all are low-rank or zero.

    A side whose factors fill the whole space keeps its own coordinates. Where an update is dense, the
    cores are the updates themselves.

    Examples:
        >>> import torch
        >>> from submerge.algebra import LowRank, Zero, frame
        >>> common = frame([LowRank(torch.ones(8, 1), torch.ones(1, 6)), Zero((8, 6))])
        >>> [core.shape for core in common.cores]
        [(1, 1), (1, 1)]
    """
    factors = [u for u in updates if isinstance(u, LowRank)]
    if not factors or any(isinstance(u, (Dense, Streamed)) for u in updates):
        dtypes = [u.dtype for u in updates if isinstance(u, (Dense, Streamed))]
        return Frame(None, None, tuple(updates), dtypes[0] if dtypes else torch.float32)
    dtype = factors[0].left.dtype
    left, left_coordinates = _basis([u.left.double() for u in factors])
    right, right_coordinates = _basis([u.right.T.double() for u in factors])
    low_rank_cores = (Dense(x @ y.T) for x, y in zip(left_coordinates, right_coordinates, strict=True))
    a = updates[0].shape[0] if left is None else left.shape[1]
    b = updates[0].shape[1] if right is None else right.shape[1]
    cores = tuple(next(low_rank_cores) if isinstance(u, LowRank) else Zero((a, b)) for u in updates)
    return Frame(left, right, cores, dtype)


def _basis(factors: Sequence[torch.Tensor]) -> tuple[torch.Tensor | None, Sequence[torch.Tensor]]:
    """Return an orthonormal basis of the columns of all factors, and each factor's coordinates in it.

    None stands for the identity, where the columns fill the space: a basis of all of it would cost a QR, and
    the cores would be no smaller.
    """
    stacked = torch.cat(list(factors), dim=1)
    if stacked.shape[1] >= stacked.shape[0]:
        return None, factors
    q, r = torch.linalg.qr(stacked)
    return q, r.split([f.shape[1] for f in factors], dim=1)
