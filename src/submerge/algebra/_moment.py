"""Second moments of the inputs of a linear map, and what least squares over tasks do with them.

A task shows a linear map y = W x, W [m, n], the inputs X [N, n], one row for each token. All that least
squares over the responses ‖(Ŵ − Δ) Xᵀ‖² see of them is the second moment

    C = Xᵀ X = Σ_rows xᵀ x     [n, n], symmetric and positive semidefinite, and the number N of rows.

It is held in one of five kinds, from the most exact to the cheapest:

    full       the lower triangle of C               n (n + 1) / 2 numbers
    block      diagonal blocks of C, of b inputs     n b
    diag       the diagonal of C                     n
    lowrank    C ≈ Sᵀ S + ρ I, S [p, n]              p n
    identity   C = ρ I; N is all that is known       1

The second and third are blocks of different sizes, the last two factors of different numbers of rows. Moments
of one kind add: those of two workers, and those of all tasks, Φ = Σ C_t.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

from submerge.deferred import torch

__all__ = ["Moment", "unlike"]

TINY = 1e-300
POWER_STEPS = 30
"""Power iterations for the extreme eigenvalues: the ratio is a figure to tell, and two digits of it do."""


class Moment(ABC):
    """The second moment C [n, n] of a linear map's inputs; see its subclasses.

    Products and solutions are in float64, whatever the numbers are held in. Other operations keep its
    dtype.

    Examples:
        >>> import torch
        >>> from submerge.algebra import BlockMoment
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
        >>> BlockMoment.of(x).times(torch.eye(2))
        tensor([[10.,  2.],
                [ 2.,  4.]], dtype=torch.float64)
        >>> BlockMoment.of(x, block=1).times(torch.eye(2)).diag()
        tensor([10.,  4.], dtype=torch.float64)
    """

    count: float
    """The number N of rows in the sum; scaling does not change it."""

    @property
    @abstractmethod
    def kind(self) -> str:
        """`full`, `block`, `diag`, `lowrank` or `identity`."""

    @property
    @abstractmethod
    def width(self) -> int:
        """n, the number of inputs."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """What the numbers are held in."""

    @property
    @abstractmethod
    def trace(self) -> float:
        """The trace of C: the sum of the squares of all inputs."""

    @property
    @abstractmethod
    def singular(self) -> bool:
        """Whether C has no inverse in float64, so that `solve` takes the pseudo-inverse."""

    @property
    def least_share(self) -> float:
        """About the least share of an input's squares that `solve` divides by; 1 where no inputs are mixed.

        Where it is no more than the rounding of the sums, `solve` magnifies that rounding. Channels of very
        different sizes do not make it small, as they do the reciprocal of `condition`.
        """
        return 1.0

    @abstractmethod
    def added(self, other: Moment) -> Moment:
        """Return C + C', with all rows of both; `ValueError` where they are of different kinds or widths."""

    @abstractmethod
    def scaled(self, factor: float) -> Moment:
        """Return factor · C, of the same rows."""

    @abstractmethod
    def shifted(self, ridge: float) -> Moment:
        """Return C + ridge · I."""

    @abstractmethod
    def shrunk(self, offdiag: float) -> Moment:
        """Return offdiag · C + (1 − offdiag) · diag(C), the shrinkage of RegMean (arXiv 2212.09849, §3.3)."""

    @abstractmethod
    def truncated(self, energy: float) -> Moment:
        """Return the leading eigenpairs of C that hold this share of its trace, as a `lowrank` moment."""

    @abstractmethod
    def times(self, rows: torch.Tensor) -> torch.Tensor:
        """Return A C for A [r, n], float64."""

    @abstractmethod
    def solve(self, rows: torch.Tensor) -> torch.Tensor:
        """Return A C⁻¹ for A [r, n], float64; with the pseudo-inverse where C has no inverse."""

    @abstractmethod
    def tensors(self) -> dict[str, torch.Tensor]:
        """Return what a file holds of the moment, for `Moment.from_tensors`."""

    @classmethod
    @abstractmethod
    def _of_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> Moment | None:
        """Return the moment of `tensors()` of this class, or None where they are of another."""

    def ridged(self, epsilon: float) -> Moment:
        """Return C + ε tr(C)/n · I, a ridge in proportion to the task's own inputs.

        A ridge of each task, unlike one of the sum, leaves three identities whole: one task gives its update,
        equal updates give that update, and in directions that no task visits the updates are averaged.
        """
        return self.shifted(epsilon * self.trace / self.width) if epsilon else self

    def per_token(self) -> Moment:
        """Return C / N, so that a task of long texts does not outweigh one of short texts."""
        return self.scaled(1 / self.count) if self.count else self

    def condition(self) -> float:
        """Return about λ_max / λ_min of C, by power iterations from below; infinity where C is singular."""
        return math.inf if self.singular else max(1.0, self.largest() * _largest(self.solve, self.width))

    def largest(self) -> float:
        """Return about λ_max of C, by power iterations from below."""
        return _largest(self.times, self.width)

    @staticmethod
    def from_tensors(tensors: Mapping[str, torch.Tensor], *, as_stored: bool = False) -> Moment:
        """Return the moment of `tensors()`, in float64 or the dtype that they are in.

        Raises `ValueError` where they are of no moment.

        Examples:
            >>> import torch
            >>> from submerge.algebra import BlockMoment, Moment
            >>> Moment.from_tensors(BlockMoment.of(torch.eye(2)).tensors()).kind
            'full'
        """
        numbers = tensors if as_stored else {name: tensor.double() for name, tensor in tensors.items()}
        for form in Moment.__subclasses__():
            if (moment := form._of_tensors(numbers)) is not None:
                return moment
        raise ValueError(f"{', '.join(sorted(tensors)) or 'nothing'} is no moment")


def _largest(function: Callable[[torch.Tensor], torch.Tensor], width: int) -> float:
    """Return about the largest eigenvalue of a positive semidefinite map of rows [1, n]."""
    # no eigenvector is likely to be orthogonal to random numbers, as one may be to equal ones
    row = torch.randn(1, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for _ in range(POWER_STEPS):
        row = function(row / row.norm().clamp(min=TINY))
    return float(row.norm())


def unlike(one: Moment, other: Moment) -> ValueError:
    what = f"a {one.kind} moment of {one.width} inputs and a {other.kind} one of {other.width}"
    return ValueError(f"{what} do not add")
