"""Several updates of one weight as factors side by side, and the cores that merge any set of them.

Update t is stored as Δ_t = U_t diag(s_t) V_t, with U_t [m, r_t], s_t [r_t] and V_t [r_t, n]. For a set S of
updates, with U = [U_t]_{t∈S} and V = [V_t]_{t∈S} stacked, every rule below has the form

    Δ_S = U M_S V,

with a core M_S = L_S R_S that follows from the Gram matrices A = UᵀU and B = V Vᵀ alone (D = diag(s)):

             L_S                   R_S
    tsv_m    A^(−1/2) D            B^(−1/2)        so that U A^(−1/2) and B^(−1/2) V are the polar factors
    iso_c    mean(σ) A^(−1/2) P    Qᵀ B^(−1/2)     for A^(1/2) D B^(1/2) = P diag(σ) Qᵀ
    sum      D                     I

No m × n matrix is formed, and no SVD of a tall one: only eigenvectors of R × R matrices in float64. The
blocks U_iᵀU_j and V_iV_jᵀ serve every set that holds i and j. Directions that the updates share exactly make
A or B singular; there the root is that of the range (see `rooted`), so that copies of an update merge
to it. Where they are nearly shared, M_S has entries as large as cond(U) cond(V), which cancel in its product
with V: rounded to float32 before that, the update loses eps · cond. U L_S and R_S V do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from submerge.algebra._spectrum import GRAM_FLOOR, rooted
from submerge.algebra._update import LowRank, Update, Zero
from submerge.deferred import torch

__all__ = ["CORES", "Bank", "Core", "Triplets"]


@dataclass(frozen=True, eq=False)
class Triplets:
    """Singular triplets of one update, left diag(values) right: left [m, r], values [r], right [r, n].

    Examples:
        >>> import torch
        >>> from submerge.algebra import Dense, Triplets, svd
        >>> cut = svd(Dense(torch.diag(torch.tensor([3.0, 2.0, 1.0]))), k=2)
        >>> Triplets(cut.u, cut.s, cut.v.T).rank
        2
    """

    left: torch.Tensor
    values: torch.Tensor
    right: torch.Tensor

    @property
    def rank(self) -> int:
        return self.values.shape[0]


@dataclass(frozen=True, eq=False)
class Core:
    """M_S as its halves L_S [R, k] and R_S [k, R] in float64, and the larger of cond(U_S) and cond(V_S).

    Examples:
        >>> import torch
        >>> from submerge.algebra import CORES
        >>> gram, values = torch.eye(2, dtype=torch.float64), torch.tensor([3.0, 1.0], dtype=torch.float64)
        >>> core = CORES["tsv_m"](gram, values, gram, 1e-7)
        >>> [round(x, 6) for x in core.matrix.diag().tolist()], round(core.condition, 6)
        ([3.0, 1.0], 1.0)
    """

    left: torch.Tensor
    right: torch.Tensor
    condition: float = 1.0

    @property
    def matrix(self) -> torch.Tensor:
        """M_S [R, R]."""
        return self.left @ self.right


def _condition(*singular_values: torch.Tensor) -> float:
    return max((float(s[0] / s[-1]) for s in singular_values if len(s)), default=1.0)


def _tsv_m(gram_u: torch.Tensor, s: torch.Tensor, gram_v: torch.Tensor, share: float) -> Core:
    (a, x), (b, y) = rooted(gram_u, share), rooted(gram_v, share)  # A = x diag(a²) xᵀ, B = y diag(b²) yᵀ
    return Core((x / a) @ x.T * s, (y / b) @ y.T, _condition(a, b))


def _iso_c(gram_u: torch.Tensor, s: torch.Tensor, gram_v: torch.Tensor, share: float) -> Core:
    (a, x), (b, y) = rooted(gram_u, share), rooted(gram_v, share)
    # A^(1/2) D B^(1/2), here in the coordinates x and y, has the singular values σ of the sum U D V
    p, sigma, qh = torch.linalg.svd((x * a).T @ (s.unsqueeze(1) * (y * b)), full_matrices=False)
    in_range = sigma > share * sigma[:1]
    mean = sigma[in_range].mean() if bool(in_range.any()) else sigma.new_zeros(())
    return Core(mean * ((x / a) @ p[:, in_range]), qh[in_range] @ (y / b).T, _condition(a, b))


def _sum(gram_u: torch.Tensor, s: torch.Tensor, gram_v: torch.Tensor, share: float) -> Core:
    return Core(s.diag(), torch.eye(len(s), dtype=s.dtype, device=s.device))


CORES: Mapping[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], Core]] = {
    "tsv_m": _tsv_m,
    "iso_c": _iso_c,
    "sum": _sum,
}
"""From A, s and B (float64) and the share of the largest singular value that is rounding, the core."""


class Bank:
    """The factored updates of one weight [m, n], by task; tasks whose update is zero have none.

    `cache` holds blocks of the Gram matrices, under keys that begin with `key`, and may forget any of them:
    the banks of all weights of a model share one of a bounded size.

    Examples:
        >>> import torch
        >>> from submerge.algebra import Bank, Triplets
        >>> eye = torch.eye(4)
        >>> parts = {t: Triplets(eye[:, t : t + 1], torch.ones(1), eye[t : t + 1]) for t in (0, 1)}
        >>> bank = Bank((4, 4), parts)
        >>> bank.merged([0, 1]).dense().diag().round(decimals=4)
        tensor([1., 1., 0., 0.])
        >>> bank.members([2, 1]), bank.cosine(0, 1)
        ((1,), 0.0)
    """

    def __init__(
        self,
        shape: tuple[int, int],
        parts: Mapping[int, Triplets],
        cache: MutableMapping[Hashable, torch.Tensor] | None = None,
        key: str = "",
    ) -> None:
        self.shape = shape
        self.parts = dict(sorted(parts.items()))
        self.key = key
        self._cache: MutableMapping[Hashable, torch.Tensor] = {} if cache is None else cache

    def members(self, tasks: Sequence[int]) -> tuple[int, ...]:
        """Return those of the tasks that change this weight, in ascending order whatever the given one."""
        return tuple(t for t in sorted(set(tasks)) if t in self.parts)

    def core(self, members: Sequence[int], rule: str) -> Core:
        """Return the core of members in ascending order."""
        values = torch.cat([self.parts[t].values.double() for t in members])
        if self.is_diagonal(members, rule):
            return CORES["sum"](values, values, values, 0.0)
        left, right = (self._gram(members, side) for side in ("left", "right"))
        return CORES[rule](left, values, right, self.negligible)

    @staticmethod
    def is_diagonal(members: Sequence[int], rule: str) -> bool:
        """Return whether M_S is diag(s): a plain sum, or one member, whose factors are orthonormal."""
        return rule == "sum" or (rule == "tsv_m" and len(members) == 1)

    def factors(self, members: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return U_S [m, R] and V_S [R, n]; views where there is one member."""
        if len(members) == 1:
            return self.parts[members[0]].left, self.parts[members[0]].right
        parts = [self.parts[t] for t in members]
        return torch.cat([p.left for p in parts], dim=1), torch.cat([p.right for p in parts])

    def merged(self, tasks: Sequence[int], rule: str = "tsv_m", scale: float = 1.0) -> Update:
        """Return scale · Δ_S as float32 factors, U_S L_S and R_S V_S, each rounded once."""
        members = self.members(tasks)
        if not members:
            return Zero(self.shape)
        left, right = self.factors(members)
        if self.is_diagonal(members, rule):
            values = torch.cat([self.parts[t].values.double() for t in members])
            return LowRank((left.double() * (values.to(left.device) * scale)).float(), right.float())
        core = self.core(members, rule)
        return LowRank(
            (left.double() @ (core.left.to(left.device) * scale)).float(),
            (core.right.to(right.device) @ right.double()).float(),
        )

    def cosine(self, i: int, j: int) -> float:
        """Return the cosine of two updates, s_iᵀ (U_iᵀU_j ∘ V_iV_jᵀ) s_j / ‖s_i‖‖s_j‖; 0 if one is zero."""
        if i not in self.parts or j not in self.parts:
            return 0.0
        a, b = self.parts[i].values.double(), self.parts[j].values.double()
        norms = float(a.norm() * b.norm())
        if norms == 0:
            return 0.0
        products = self._pair(i, j, "left") * self._pair(i, j, "right")
        return float(a @ products @ b) / norms

    @cached_property
    def negligible(self) -> float:
        """The share of the largest singular value of U or V that is rounding of the stored factors.

        Factors of 16 bits are off by their own eps, which shared directions show as values of that size.
        """
        dtypes = [part.left.dtype for part in self.parts.values()] or [torch.float32]
        eps = max(torch.finfo(dtype).eps for dtype in dtypes)
        return max(GRAM_FLOOR, eps, math.sqrt(max(self.shape)) * min(eps, torch.finfo(torch.float32).eps))

    def _gram(self, members: Sequence[int], side: str) -> torch.Tensor:
        return torch.cat([torch.cat([self._pair(i, j, side) for j in members], dim=1) for i in members])

    def _pair(self, i: int, j: int, side: str) -> torch.Tensor:
        """Return U_iᵀU_j or V_iV_jᵀ in float64, on the CPU."""
        if i > j:
            return self._pair(j, i, side).T
        key = (self.key, side, i, j)
        if key in self._cache:
            return self._cache[key]
        a, b = self.parts[i], self.parts[j]
        if side == "left":
            pair = a.left.double().T @ b.left.double()
        else:
            pair = a.right.double() @ b.right.double().T
        self._cache[key] = pair
        return pair
