"""How likely, or how similar, a vector is to each of K groups: what their weights are a softmax of.

There are two such scores, of which larger is nearer: the cosine with the nearest prototype, and the logarithm
of the probability by a linear discriminant, which knows in which directions vectors of one group differ, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from submerge.algebra._discriminant import discriminant_of
from submerge.algebra._group_statistics import GroupStatistics
from submerge.algebra._prototypes import Prototypes
from submerge.deferred import torch
from submerge.errors import Problem, RequestError

__all__ = ["QUESTION_FLOOR", "CosineScores", "DiscriminantScores", "GroupScores", "grouped_discriminant"]

QUESTION_FLOOR = 0.01
"""The least variance of questions, as a share of the mean squared distance of two tasks' means.

A task often asks in one wording or a few, whose vectors do not vary. Without a floor a wording that no task
has would overrule the image, whichever task it is a little nearer to; with it the odds of two tasks are
bounded. Of six image tasks with questions, a larger one finds fewer, and a smaller one fails on new wordings.
"""


class GroupScores(Protocol):
    """A score of K groups for vectors of one width, and of two kinds of vectors together.

    Examples:
        >>> import torch
        >>> from submerge.algebra import DiscriminantScores, GroupScores
        >>> groups: GroupScores = DiscriminantScores([torch.tensor([[1.0, 0.0]])])
        >>> groups.scores(torch.tensor([[3.0]]))
        tensor([[3.]], dtype=torch.float64)
    """

    def scores(self, v: torch.Tensor) -> torch.Tensor:
        """Return the score [B, K], float64, of vectors [B, d]; raise `RequestError` for others."""

    def joined(self, own: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Return the scores of what has two kinds of vectors, of which these are the scores."""


class CosineScores:
    """The cosine with the nearest prototype of each group; of two kinds of vectors the mean counts.

    Examples:
        >>> import torch
        >>> from submerge.algebra import CosineScores, Prototypes
        >>> groups = CosineScores(Prototypes(list(torch.eye(2))), centred=False)
        >>> groups.scores(torch.tensor([[0.0, 2.0]]))
        tensor([[0., 1.]], dtype=torch.float64)
    """

    def __init__(self, prototypes: Prototypes, *, centred: bool) -> None:
        self.prototypes, self.centred = prototypes, centred

    def scores(self, v: torch.Tensor) -> torch.Tensor:
        """Return the cosines [B, K], as `Prototypes.similarity` has them."""
        return self.prototypes.similarity(v, centred=self.centred)

    def joined(self, own: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Return the mean of two cosines."""
        return (own + other) / 2


class DiscriminantScores:
    """log p(x | k) up to a constant, where group k has the rows (w, b) of a discriminant.

    Of two kinds of vectors they add, as if these were independent within a group.

    Args:
        groups: of each group its rows [m_k, d + 1] as `grouped_discriminant` returns them.

    Examples:
        >>> import torch
        >>> from submerge.algebra import DiscriminantScores
        >>> groups = DiscriminantScores([torch.tensor([[1.0, 0.0]]), torch.tensor([[-1.0, 0.0]])])
        >>> groups.scores(torch.tensor([[2.0]]))
        tensor([[ 2., -2.]], dtype=torch.float64)
    """

    def __init__(self, groups: Sequence[torch.Tensor]) -> None:
        self.rows = [rows.detach().double() for rows in groups]

    def scores(self, v: torch.Tensor) -> torch.Tensor:
        """Return the scores [B, K]; raise `RequestError` for another width, NaN and Inf."""
        if (width := self.rows[0].shape[1] - 1) != v.shape[1]:
            raise _refusal(f"vectors of {v.shape[1]} numbers, and a discriminant of {width}")
        v = v.detach().to(self.rows[0])
        if not v.isfinite().all():
            raise _refusal("what is compared with tasks holds NaN or Inf")
        each = [(v @ rows[:, :-1].T + rows[:, -1]).logsumexp(1) for rows in self.rows]
        return torch.stack(each, dim=1)

    def joined(self, own: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Return the sum of two logarithms of probabilities."""
        return own + other


def grouped_discriminant(
    groups: Sequence[Sequence[GroupStatistics]], *, floor: float = 0.0
) -> list[torch.Tensor]:
    """Return of each group of tasks the rows (w, b) [m_k, d + 1], float32, of the discriminant of all tasks.

    Tasks have equal priors; a group has what its tasks have together. `floor` and errors are those of
    `discriminant_of`.

    Examples:
        >>> import torch
        >>> from submerge.algebra import GroupStatistics, grouped_discriminant
        >>> x = torch.tensor([[1.0, 1], [1, -1], [2, 0], [0, 0]])
        >>> tasks = [GroupStatistics.of(own, own.mean(0, keepdim=True)) for own in (x, -x, x + 5)]
        >>> [list(rows.shape) for rows in grouped_discriminant([tasks[:1], tasks[1:]])]
        [[1, 3], [2, 3]]
    """
    fitted = discriminant_of([task for group in groups for task in group], floor=floor)
    rows = torch.cat([fitted.weights, fitted.offsets.unsqueeze(1)], dim=1)
    sizes = [sum(len(task.means) for task in group) for group in groups]
    return list(torch.split(rows.float(), sizes))


def _refusal(what: str) -> RequestError:
    return RequestError(Problem(what, "discriminant", "merge again, with the model that is served"))
