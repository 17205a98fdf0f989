"""The weights with which tasks are exported: what they may be, and what of them has to be told."""

from __future__ import annotations

from collections.abc import Mapping

from submerge.arguments import is_finite_number
from submerge.continual._manifest import StateManifest
from submerge.errors import Problem, RequestError

__all__ = ["checked_weights"]


def checked_weights(manifest: StateManifest, weights: Mapping[str, float]) -> dict[str, float]:
    """Return the weights that are not 1, by the names of tasks; w_t is a factor on C_t (see `StoredTasks`).

    Raises `RequestError` where a weight is of no task, no finite number from 0, or where all are 0, or the
    state has the sum of the tasks' moments alone.
    """
    for name, weight in weights.items():
        manifest.task(name, "--weight")
        if not is_finite_number(weight) or weight < 0:
            what = f"the weight of {name!r} is {weight!r}, which is no finite number from 0"
            raise RequestError(Problem(what, "--weight", "write such as 0.5"))
    if weights and all(weights.get(name, 1) == 0 for name in manifest.names):
        raise RequestError(Problem("all weights are 0", "--weight", "give one task a weight"))
    chosen = {name: float(weights[name]) for name in sorted(weights) if weights[name] != 1}
    if chosen and not manifest.options.keeps_moments:
        what = "weights need each task's own moments, and this state has their sum alone (--keep none)"
        raise RequestError(Problem(what, "--weight", "begin a state with --keep full"))
    return chosen
