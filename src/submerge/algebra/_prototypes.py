"""Groups of inputs by their prototypes: to which of K groups does a vector belong, and how surely?

Each of K groups has one or several prototypes, means of its vectors. A vector's similarity with a group is
the cosine with the nearest of them, and its weights are a softmax of the similarities:

    s_k(v) = max_j cos(v − c, μ_kj − c)        c: the mean over groups of their mean prototype, or 0
    α_k(v) = exp(s_k / τ) / Σ_i exp(s_i / τ)

Features of an encoder share most of their direction: of two images of quite different tasks the cosine is
near 1, which `centred` takes away.
"""

from __future__ import annotations

from collections.abc import Sequence

from submerge.deferred import torch
from submerge.errors import Problem, RequestError

__all__ = ["Prototypes", "k_means", "similarity_weights"]

ROUNDING = 1e-12
"""What is left of a vector less its equal, by their length: nothing that has a direction."""
CANDIDATES = 256
"""The most points that are tried as a centre to begin with."""
STEPS = 100
"""The most steps of Lloyd's algorithm."""


class Prototypes:
    """The prototypes of K groups, compared with vectors in double precision.

    So what a vector gets does not depend on the others of its batch. All is computed where the prototypes
    are, to which vectors are copied.

    Args:
        means: of each group its prototypes [m_k, d], or one as [d]; what is flattened of positions, too.

    Raises:
        RequestError: there are none, they differ in width, or hold NaN or Inf.

    Examples:
        >>> import torch
        >>> from submerge.algebra import Prototypes
        >>> groups = Prototypes([torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, -1.0]])])
        >>> groups.similarity(torch.tensor([[0.0, -2.0]]), centred=False).tolist()
        [[0.0, 1.0]]
        >>> groups.weights(torch.tensor([[0.0, -2.0]]), temperature=0.0, centred=False).tolist()
        [[0.0, 1.0]]
    """

    def __init__(self, means: Sequence[torch.Tensor]) -> None:
        self.means = [(mean if mean.ndim > 1 else mean[None]).detach().double() for mean in means]
        if not self.means or any(not len(mean) for mean in self.means):
            raise _refusal("a group has no prototype")
        if len({mean.shape[1:] for mean in self.means}) > 1 or self.means[0].ndim != 2:
            shapes = ", ".join(str(list(mean.shape)) for mean in self.means)
            raise _refusal(f"prototypes must be vectors of one width, and are {shapes}")
        if not all(bool(mean.isfinite().all()) for mean in self.means):
            raise _refusal("a prototype holds NaN or Inf")

    @property
    def count(self) -> int:
        """The number K of groups."""
        return len(self.means)

    @property
    def width(self) -> int:
        """The numbers d of a prototype."""
        return int(self.means[0].shape[1])

    @property
    def centre(self) -> torch.Tensor:
        """The mean over groups of their mean prototype [d]."""
        return torch.stack([mean.mean(0) for mean in self.means]).mean(0)

    def similarity(self, v: torch.Tensor, *, centred: bool) -> torch.Tensor:
        """Return the cosine [B, K], float64, of vectors [B, d] with the nearest prototype of each group.

        With `centred` it is that of the differences from `centre`; not where there is a single group, whose
        prototypes would have no direction left. A vector of zeros has none, and the cosine 0.

        Raises `RequestError` for vectors of another width, and for NaN and Inf.
        """
        if v.shape[1] != self.width:
            raise _refusal(f"vectors of {v.shape[1]} numbers, and prototypes of {self.width}")
        v = v.detach().to(self.means[0])
        if not v.isfinite().all():
            raise _refusal("what is compared with prototypes holds NaN or Inf")
        centre = self.centre if centred and self.count > 1 else torch.zeros_like(self.means[0][0])
        floor = ROUNDING * centre.norm()
        units = _unit(v - centre, floor)
        return torch.stack([(units @ _unit(mean - centre, floor).T).amax(1) for mean in self.means], dim=1)

    def weights(
        self, v: torch.Tensor, *, temperature: float, centred: bool, top: int | None = None
    ) -> torch.Tensor:
        """Return the weights [B, K], float64, of the groups for vectors [B, d]; rows sum to 1.

        `temperature` is τ: 0 leaves the nearest group alone, and infinity weighs all alike. Of groups that
        are equally near none is preferred: they have equal weights. `top` keeps the nearest groups, and those
        that are as near as the last of them. Errors are those of `similarity`.
        """
        return similarity_weights(self.similarity(v, centred=centred), temperature=temperature, top=top)


def similarity_weights(
    similarity: torch.Tensor, *, temperature: float, top: int | None = None
) -> torch.Tensor:
    """Return the softmax of similarities [B, K] over τ, of the `top` largest alone; rows sum to 1.

    At τ = 0 the largest have all of it, in equal shares. What equals the last of the `top` is kept, too.

    Examples:
        >>> import torch
        >>> from submerge.algebra import similarity_weights
        >>> similarity_weights(torch.tensor([[0.5, 0.5, 0.1]]), temperature=0.0).tolist()
        [[0.5, 0.5, 0.0]]
    """
    below = similarity - similarity.amax(1, keepdim=True)  # ≤ 0
    exponents = below / temperature if temperature else below.masked_fill(below < 0, -torch.inf)
    if top is not None and top < similarity.shape[1]:
        last = similarity.topk(top, dim=1).values[:, -1:]
        exponents = exponents.masked_fill(similarity < last, -torch.inf)
    return exponents.softmax(1)


def k_means(x: torch.Tensor, m: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the means [m', d] and sizes [m'] of up to m clusters of vectors [N, d], the largest first.

    Lloyd's algorithm from centres that are taken one after the other from among the vectors, each the one
    that lowers the sum of squared distances most. There is nothing random in it. Where vectors coincide there
    may be fewer clusters than m. One cluster is the mean of all.

    Examples:
        >>> import torch
        >>> from submerge.algebra import k_means
        >>> means, sizes = k_means(torch.tensor([[0.0], [5.0], [1.0], [0.5]]), 2)
        >>> means.tolist(), sizes.tolist()
        ([[0.5], [5.0]], [3, 1])
    """
    wide = x.double()
    means = wide.mean(0, keepdim=True) if m == 1 else _first_centres(wide, m)
    labels = _nearest(wide, means)
    for _ in range(STEPS):
        means, sizes = _cluster_means(wide, labels)
        before, labels = labels, _nearest(wide, means)
        if torch.equal(before, labels):
            break
    means, sizes = _cluster_means(wide, labels)
    order = sizes.argsort(descending=True, stable=True)
    return means[order].to(x.dtype), sizes[order]


def _first_centres(x: torch.Tensor, m: int) -> torch.Tensor:
    """Return up to m different vectors of x [N, d], with which the sum of squared distances is small."""
    candidates = x[:: -(-len(x) // CANDIDATES)]
    squares = _distances(x, candidates).square()  # [N, candidates]
    nearest = squares.new_full((len(x), 1), torch.inf)
    chosen: list[int] = []
    while len(chosen) < m and nearest.any():
        best = int(torch.minimum(nearest, squares).sum(0).argmin())
        if best in chosen:  # no other candidate is nearer to any vector
            break
        chosen.append(best)
        nearest = torch.minimum(nearest, squares[:, best : best + 1])
    return candidates[chosen]


def _nearest(x: torch.Tensor, means: torch.Tensor) -> torch.Tensor:
    return _distances(x, means).argmin(1)


def _distances(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return Euclidean distances, which are exactly 0 between equal vectors."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def _cluster_means(x: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the means and sizes of clusters, without those that are empty."""
    sizes = labels.bincount()
    sums = x.new_zeros(len(sizes), x.shape[1]).index_add(0, labels, x)
    used = sizes > 0
    return sums[used] / sizes[used].unsqueeze(1), sizes[used]


def _unit(v: torch.Tensor, floor: torch.Tensor) -> torch.Tensor:
    """Return vectors divided by their lengths, and zeros for those that are no longer than `floor`."""
    length = v.norm(dim=1, keepdim=True)
    return torch.where(length > floor, v / length, 0.0)


def _refusal(what: str) -> RequestError:
    return RequestError(Problem(what, "prototypes", "make them again, with the model that is served"))
