"""KnOTS-TIES: TIES in coordinates that all updates share.

With U the left singular vectors of the updates side by side, [Δ_1 … Δ_T] = U diag(s) [V_1 … V_T]ᵀ to
numerical rank, every update is Δ_t = U C_t with C_t = Uᵀ Δ_t = diag(s) V_tᵀ, and

    θ = θ_0 + scale · U · TIES(w_1 C_1, …, w_T C_T).

TIES keeps of each C_t the share `density` that is largest in magnitude, elects the sign of every entry's
sum, and averages (`normalize`) or sums the entries of that sign. As in the authors' code the share of d
entries is ⌊density d⌋ + 1 of them, and those that tie with the last. The authors trim over all layers at
once; here it is matrix by matrix, for a merge sees one at a time. Singular values that are equal leave
their vectors open, and the result with them.
Stoica et al. 2025, arXiv 2410.19735; TIES: Yadav et al. 2023, arXiv 2306.01708.
"""

from __future__ import annotations

from collections.abc import Sequence

from submerge.algebra import LowRank, Update, Zero, frame, leading, tolerance
from submerge.deferred import np, npt, torch
from submerge.methods._base import Merged, Method, Option, TensorSpec, Values
from submerge.methods._matrix import WEIGHT, mean_plan
from submerge.methods._sign_consensus import disjoint_merge

__all__ = ["METHODS"]

OPTIONS = (
    WEIGHT,
    Option("density", float, 0.2, "share of coordinates kept", scope="model", low=0, high=1, tune=True),
    Option("scale", float, 0.6, "factor on the merged update", tune=True),
    Option("normalize", bool, True, "average the entries that agree; false: sum them"),
)


def _matrix(updates: Sequence[Update], spec: TensorSpec, o: Values) -> Merged:
    terms = [
        (update, weight, density)
        for update, weight, density in zip(updates, o["weight"], o["density"], strict=True)
        if weight and density and not isinstance(update, Zero)
    ]
    basis = _left_basis(updates)
    rank = basis.shape[1]
    if not terms or not rank:
        return Merged(Zero(updates[0].shape), {"rank": rank})
    merged = _ties_in(basis, terms, o["normalize"])
    return Merged(LowRank(basis * o["scale"], merged), {"rank": rank})


def _left_basis(updates: Sequence[Update]) -> torch.Tensor:
    """Return U [m, r]: the left singular vectors of [Δ_1 … Δ_T], which are eigenvectors of Σ Δ_t Δ_tᵀ."""
    core_space = frame(updates)
    vectors = leading(core_space.cores, "left", core_space.cores[0].shape[0]).vectors
    if core_space.left is not None:
        vectors = core_space.left @ vectors
    return vectors.to(core_space.dtype)


def _ties_in(
    basis: torch.Tensor, terms: Sequence[tuple[Update, float, float]], normalize: bool
) -> torch.Tensor:
    """Return TIES(w_1 C_1, …, w_T C_T) [r, n] of coordinates C_t = Uᵀ Δ_t, for terms (Δ_t, w_t, density_t).

    Where the C_t together would be larger than one update, they are not all in memory: each is computed once
    to be trimmed, of which a mask of bits remains, and all again, by blocks of rows, to be merged.
    """
    (m, n), rank = terms[0][0].shape, basis.shape[1]
    step = rank if rank * len(terms) <= m else -(-rank // len(terms))
    blocks = [slice(start, start + step) for start in range(0, rank, step)]

    def coordinates(at: slice) -> list[torch.Tensor]:
        return [update.rmatmul(basis[:, at].T) for update, _, _ in terms]

    at_once = coordinates(blocks[0]) if len(blocks) == 1 else None
    to_trim = at_once or (update.rmatmul(basis.T) for update, _, _ in terms)
    masks = [_trim(c, density) for c, (_, _, density) in zip(to_trim, terms, strict=True)]
    merged = basis.new_empty(rank, n)
    for at in blocks:
        trimmed = at_once or coordinates(at)
        for c, mask, (_, weight, _) in zip(trimmed, masks, terms, strict=True):
            c.mul_(torch.from_numpy(np.unpackbits(mask[at], axis=1, count=n))).mul_(weight)
        merged[at] = disjoint_merge(trimmed, [w for _, w, _ in terms] if normalize else None)
    return merged


def _trim(x: torch.Tensor, density: float) -> npt.NDArray[np.uint8]:
    """Return which entries of x [r, n] TIES keeps, as bits [r, n / 8]: the k + 1 largest, and ties.

    k = ⌊density d⌋ of d entries; the authors keep those that are at least the (d − k)-th smallest. Entries
    tie where they are equal to rounding. Bits, for entries that are computed again are not those that were
    ranked: the same product in other blocks is rounded otherwise, and a threshold could lose the entry that
    it was taken from.
    """
    magnitudes = x.abs().numpy()
    smaller = magnitudes.size - int(density * magnitudes.size) - 1
    last = np.partition(magnitudes, smaller, axis=None)[smaller] if smaller >= 0 else 0
    rounding = tolerance((x.shape[0], x.shape[1]), x.dtype)
    return np.packbits(magnitudes >= last * (1 - rounding), axis=1)


METHODS = (
    Method(
        name="knots_ties",
        title="KnOTS-TIES",
        equation="θ = θ_0 + scale · U · TIES(w_1 Uᵀ Δ_1, …, w_T Uᵀ Δ_T), U the basis of [Δ_1 … Δ_T]",
        source="Stoica et al. 2025, arXiv 2410.19735",
        use="LoRA adapters of different tasks: TIES in coordinates that they share.",
        plan=mean_plan,
        matrix=_matrix,
        both_sides=True,
        options=OPTIONS,
        differs="entries are trimmed matrix by matrix; the authors trim over all layers at once",
    ),
)
