"""What inputs of the tasks add to a router: a discriminant of what they show at the sites.

Of unlabelled inputs of each task, pooled at site j to z_j, a linear discriminant tells the tasks apart.
Beside the router's score without data, s_t (in nats, as `Router.data_free` has it),

    scores_t(x) = a · mean_j log p_j(t | z_j) + b · s_t(x),     a, b ≥ 0

is a logistic regression whose two weights say how much each is worth. They are fitted to the same inputs, by
discriminants of the other three quarters of them: few inputs, of which a discriminant learns little, get a
small weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from submerge.algebra import Discriminant, linear_discriminant
from submerge.errors import Problem, RequestError, few
from submerge.routing._reference import check_first_pass

__all__ = ["CalibrationWeights", "RouterCalibration", "fit_calibration"]

FOLDS = 4
LEAST = FOLDS
"""Inputs of a task, at least: each fold has one."""
SPREAD_FLOOR = 1e-12


@dataclass(frozen=True)
class CalibrationWeights:
    """a and b, and the share of the inputs that met their own task with them and without.

    `right` is of the inputs by discriminants that have not seen them, and by weights that have;
    `right_before` is by the score without data.
    """

    discriminant: float
    data_free: float
    right: float
    right_before: float


@dataclass(frozen=True)
class RouterCalibration:
    """The discriminants of the sites, and what they are worth.

    Attributes:
        sites: the number of each among all that are looked at. A model without heads has other names of its
            maps than one with them, and the same sites.
        discriminants: of the tasks, one a site.
        weights: of scores with the heads' evidence, and without it, by `True` and `False`.
        settings: of the first pass that the inputs were looked at in.
        counts: how many inputs there were of each task, by its name.
    """

    sites: tuple[int, ...]
    discriminants: tuple[Discriminant, ...]
    weights: Mapping[bool, CalibrationWeights]
    settings: Mapping[str, Any]
    counts: Mapping[str, int]

    @property
    def has_heads(self) -> bool:
        """Whether the heads' evidence was there."""
        return True in self.weights

    def scores(
        self, inputs: Mapping[int, torch.Tensor], data_free: torch.Tensor, *, heads: bool
    ) -> torch.Tensor:
        """Return log-probabilities of the tasks [B, T], up to a constant of each input.

        Args:
            inputs: pooled inputs [B, n] by the sites' numbers.
            data_free: the scores without data [B, T].
            heads: whether they have the heads' evidence.
        """
        weights = self.weights[heads]
        pairs = zip(self.sites, self.discriminants, strict=True)
        posteriors = _mean([fitted.log_posteriors(inputs[site]) for site, fitted in pairs])
        return weights.discriminant * posteriors + weights.data_free * data_free

    @property
    def nbytes(self) -> int:
        """The bytes of the file that holds it, but for its header: 4 n a task and site."""
        return sum(4 * fitted.weights.numel() + 8 * len(fitted.offsets) for fitted in self.discriminants)

    def to_dict(self) -> dict[str, Any]:
        """Return what was found as plain data for JSON, without the discriminants."""
        best = self.weights[self.has_heads]
        return {
            "inputs": dict(self.counts),
            "sites": len(self.sites),
            "bytes": self.nbytes,
            "right": best.right,
            "right_before": best.right_before,
            "weights": {"discriminant": best.discriminant, "data_free": best.data_free},
        }

    def check(self, settings: Mapping[str, Any], where: str) -> None:
        """Raise `RequestError` where the first pass now is another than that of the calibration."""
        check_first_pass(self.settings, settings, where)


def fit_calibration(
    names: Sequence[str],
    inputs: Mapping[int, torch.Tensor],
    tasks: torch.Tensor,
    data_free: Mapping[bool, torch.Tensor],
    settings: Mapping[str, Any],
    shrinkage: float | None = None,
) -> RouterCalibration:
    """Return the calibration of a router by inputs of the tasks.

    Args:
        names: of the tasks.
        inputs: pooled inputs [N, n] of each site, by its number.
        tasks: the task of each input [N].
        data_free: the scores without data [N, T], with the heads' evidence (`True`) and without it.
        settings: of the first pass.
        shrinkage: of the covariance, in (0, 1]; by default that of Ledoit and Wolf. At 1 the nearest mean of
            a task, its prototype, is best.

    Raises:
        RequestError: there are fewer than four inputs of a task, or nothing in which they differ.
    """
    counts = torch.bincount(tasks, minlength=len(names)).tolist()
    if lacking := [f"{name} ({count})" for name, count in zip(names, counts, strict=True) if count < LEAST]:
        what = f"there are fewer than {LEAST} inputs of {few(lacking)}"
        raise RequestError(Problem(what, "data", "give 32 of each task, or as many as there are"))
    fold = _folds(tasks)
    fitted: dict[int, Discriminant] = {}
    unseen: list[torch.Tensor] = []
    for site, vectors in inputs.items():
        try:
            fitted[site] = _discriminant(vectors, tasks, shrinkage)
            unseen.append(_cross_validated(vectors, tasks, fold, shrinkage))
        except ValueError:  # alike, as the first token of an image is in the first block
            fitted.pop(site, None)
    if not fitted:
        raise RequestError(Problem("the inputs of each task are all alike", "data", "give distinct inputs"))
    posteriors = _mean(unseen)
    weights = {
        heads: _weights(posteriors, scores.double().cpu(), tasks) for heads, scores in data_free.items()
    }
    by_name = dict(zip(names, counts, strict=True))
    return RouterCalibration(tuple(fitted), tuple(fitted.values()), weights, dict(settings), by_name)


def _discriminant(vectors: torch.Tensor, tasks: torch.Tensor, shrinkage: float | None) -> Discriminant:
    return linear_discriminant([vectors[tasks == t] for t in range(int(tasks.max()) + 1)], shrinkage)


def _folds(tasks: torch.Tensor) -> torch.Tensor:
    """Return the fold of each input [N]: those of a task are dealt out in turns."""
    fold = torch.zeros_like(tasks)
    for t in range(int(tasks.max()) + 1):
        fold[tasks == t] = torch.arange(int((tasks == t).sum())) % FOLDS
    return fold


def _cross_validated(
    vectors: torch.Tensor, tasks: torch.Tensor, fold: torch.Tensor, shrinkage: float | None
) -> torch.Tensor:
    """Return the log-posteriors [N, T] of all inputs, by the discriminants of the other folds."""
    posteriors = torch.zeros(len(tasks), int(tasks.max()) + 1, dtype=torch.float64)
    for number in range(FOLDS):
        out = fold == number
        posteriors[out] = _discriminant(vectors[~out], tasks[~out], shrinkage).log_posteriors(vectors[out])
    return posteriors


def _mean(each: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(each)).mean(0)


def _weights(posteriors: torch.Tensor, data_free: torch.Tensor, tasks: torch.Tensor) -> CalibrationWeights:
    a, b = _logistic([posteriors, data_free], tasks)

    def right(scores: torch.Tensor) -> float:
        return (scores.argmax(1) == tasks).double().mean().item()

    return CalibrationWeights(a, b, right(a * posteriors + b * data_free), right(data_free))


def _logistic(evidence: Sequence[torch.Tensor], tasks: torch.Tensor) -> list[float]:
    """Return the weights w ≥ 0 of evidence [N, T] that maximise Σ log softmax(Σ_k w_k E_k) of own tasks.

    One of N + 1 inputs counts as one of any other task, as Platt (1999) has it: weights stay finite where the
    evidence is never wrong.
    """
    scales = [max(SPREAD_FLOOR, float(one.std(1).square().mean().sqrt())) for one in evidence]
    stacked = torch.stack([one / scale for one, scale in zip(evidence, scales, strict=True)])  # [K, N, T]
    count, width = stacked.shape[1:]
    target = torch.full((count, width), 1 / (count + 1) / (width - 1), dtype=torch.float64)
    target[torch.arange(count), tasks] = 1 - 1 / (count + 1)
    logs = torch.zeros(len(evidence), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logs], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        scores = (logs.exp().view(-1, 1, 1) * stacked).sum(0)
        value = -(target * scores.log_softmax(1)).sum(1).mean()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[no-untyped-call]
    return [float(log.exp()) / scale for log, scale in zip(logs.detach(), scales, strict=True)]
